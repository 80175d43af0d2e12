package dummy_test

import (
	"testing"

	"hayloft/disk/localstore"
	"hayloft/disk/localstore/dummy"
	"hayloft/disk/localstore/volumestest"
)

func TestDummy(t *testing.T) {
	volumestest.Run(t, volumestest.Place{None: true, Open: func(*testing.T, int64) localstore.Volumes { return dummy.Store{} }})
}
