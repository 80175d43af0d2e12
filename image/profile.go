package image

import (
	"encoding/json"

	"hayloft/cloud/fault"
)

// ProfileSuffix ends the names of boot profiles.
const ProfileSuffix = ".profile"

// ProfileName is the name of the object that holds the boot profile of object name.
func ProfileName(name string) string { return name + ProfileSuffix }

// MaxProfileFile bounds the file of a boot profile, in bytes.
const MaxProfileFile = 8 << 20

const profileVersion = 1

// profileFile is a boot profile as stored, in JSON.
type profileFile struct {
	Version   int    `json:"version"`
	Digest    string `json:"digest"` // of the image
	ChunkSize int    `json:"chunk_size"`
	// Runs of neighbouring chunks, in the order of their first reads: first chunk and how many.
	Runs [][2]int `json:"runs"`
}

// MarshalProfile gives the file of a boot profile: the chunks of image x that its first boot touched, in order.
func MarshalProfile(x *Index, chunks []int) ([]byte, error) {
	f := profileFile{Version: profileVersion, Digest: x.Digest(), ChunkSize: x.ChunkSize(), Runs: [][2]int{}}
	for _, c := range chunks {
		if last := len(f.Runs) - 1; last >= 0 && f.Runs[last][0]+f.Runs[last][1] == c {
			f.Runs[last][1]++
			continue
		}
		f.Runs = append(f.Runs, [2]int{c, 1})
	}
	return json.Marshal(f)
}

// UnmarshalProfile reads the file of a boot profile of image x. A profile is a hint, not verified by any digest:
// chunks that there are not are an error (fault.Corrupt), those named twice are left out.
func UnmarshalProfile(b []byte, x *Index) ([]int, error) {
	var f profileFile
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, fault.Errorf(fault.Corrupt, "boot profile: %w", err)
	}
	switch {
	case f.Version != profileVersion:
		return nil, fault.Errorf(fault.Unsupported, "boot profile: version %d, this program reads %d", f.Version, profileVersion)
	case f.Digest != x.Digest():
		return nil, fault.Errorf(fault.Corrupt, "boot profile: of image %s instead of %s", f.Digest, x.Digest())
	case f.ChunkSize != x.ChunkSize():
		return nil, fault.Errorf(fault.Corrupt, "boot profile: chunks of %d bytes instead of %d", f.ChunkSize, x.ChunkSize())
	}
	seen := make([]bool, x.Chunks())
	var chunks []int
	for _, r := range f.Runs {
		if r[0] < 0 || r[1] < 0 || r[0] > len(seen) || r[1] > len(seen)-r[0] {
			return nil, fault.Errorf(fault.Corrupt, "boot profile: chunks %d to %d of %d", r[0], r[0]+r[1], len(seen))
		}
		for c := r[0]; c < r[0]+r[1]; c++ {
			if !seen[c] {
				seen[c] = true
				chunks = append(chunks, c)
			}
		}
	}
	return chunks, nil
}
