package image

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"hayloft/cloud/fault"
)

func profiled(t interface{ Fatal(...any) }, chunks int) *Index {
	x, err := NewIndex(int64(chunks)*ChunkSize, ChunkSize)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func TestProfileReadsBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 300).Draw(t, "chunks")
		x := profiled(t, n)
		want := rapid.SliceOfDistinct(rapid.IntRange(0, n-1), rapid.ID[int]).Draw(t, "touched")
		b, err := MarshalProfile(x, want)
		if err != nil {
			t.Fatal(err)
		}
		got, err := UnmarshalProfile(b, x)
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("%v of %v, %v", got, want, err)
		}
	})
}

func TestProfileRefusesWhatIsNotOfTheImage(t *testing.T) {
	x := profiled(t, 10)
	digest := x.Digest()
	for text, want := range map[string]fault.Class{
		`{half`:         fault.Corrupt,
		`{"version":2}`: fault.Unsupported,
		`{"version":1,"digest":"blake3:00","chunk_size":65536,"runs":[]}`:                             fault.Corrupt,
		`{"version":1,"digest":"` + digest + `","chunk_size":4096,"runs":[]}`:                         fault.Corrupt,
		`{"version":1,"digest":"` + digest + `","chunk_size":65536,"runs":[[9,2]]}`:                   fault.Corrupt,
		`{"version":1,"digest":"` + digest + `","chunk_size":65536,"runs":[[-1,2]]}`:                  fault.Corrupt,
		`{"version":1,"digest":"` + digest + `","chunk_size":65536,"runs":[[1,9223372036854775807]]}`: fault.Corrupt,
		`{"version":1,"digest":"` + digest + `","chunk_size":65536,"runs":[[9223372036854775807,1]]}`: fault.Corrupt,
	} {
		if got, err := UnmarshalProfile([]byte(text), x); !fault.Is(err, want) {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
}

func FuzzProfile(f *testing.F) {
	x := profiled(f, 10)
	b, _ := MarshalProfile(x, []int{3, 4, 1})
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		chunks, err := UnmarshalProfile(b, x)
		if err == nil && len(chunks) > 10 {
			t.Error(chunks)
		}
	})
}
