package operation

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"regexp"
	"strconv"

	"hayloft/cloud"
	"hayloft/cloud/fault"
)

// reference names an image by id or by name.
type reference struct {
	id    int
	hasID bool
	name  string
}

var filePattern = regexp.MustCompile(`\$FILE\[\s*(IMAGE_ID|IMAGE)\s*=\s*"?([^\]"]*)"?\s*\]`)

// fileReferences reads a list of $FILE[IMAGE_ID=n] and $FILE[IMAGE="name"].
func fileReferences(text string) ([]reference, error) {
	var refs []reference
	for _, m := range filePattern.FindAllStringSubmatch(text, -1) {
		if m[1] == "IMAGE" {
			refs = append(refs, reference{name: m[2]})
			continue
		}
		id, err := strconv.Atoi(m[2])
		if err != nil {
			return nil, fault.Errorf(fault.Invalid, "%q is no image id", m[2])
		}
		refs = append(refs, reference{id: id, hasID: true})
	}
	if len(refs) == 0 {
		return nil, fault.Errorf(fault.Invalid, "no $FILE[IMAGE_ID=number] in it")
	}
	return refs, nil
}

func (o *Operations) findImage(r reference) (cloud.Image, error) {
	if r.hasID {
		return o.Inv.Image(r.id)
	}
	for _, img := range o.Inv.AllImages() {
		if img.Name == r.name {
			return img, nil
		}
	}
	return cloud.Image{}, fault.Errorf(fault.NotFound, "image %q does not exist", r.name)
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails, by its documentation
	return b
}

func randomText(n int) string { return hex.EncodeToString(randomBytes((n + 1) / 2))[:n] }

// newUUID is a random UUID (RFC 9562, version 4).
func newUUID() string {
	b := randomBytes(16)
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
