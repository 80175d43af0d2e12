package operation

import (
	"strings"
	"testing"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/server/lifecycle"
)

func cloned(t *testing.T, o *Operations, id int, kind string) {
	t.Helper()
	_, revision, err := o.Inv.Images.Update(t.Context(), id, func(i *cloud.Image) error {
		i.State, i.ClonedFrom.Kind, i.Digest = cloud.ImageStateReady, kind, "blake3:00"
		return nil
	})
	check(t, err)
	check(t, o.Inv.WaitFor(t.Context(), revision))
}

func TestParentStaysUnderItsClones(t *testing.T) {
	o := cloudOf(t)
	clone, err := o.CloneImage(t.Context(), 0, CloneImage{Name: "clone", Datastore: -1})
	check(t, err)
	if err := o.DeleteImage(t.Context(), 0); !fault.Is(err, fault.Busy) || !strings.Contains(err.Error(), "clone") {
		t.Errorf("while it is being cloned: %v", err)
	}
	cloned(t, o, clone, "rbd-clone")
	if err := o.DeleteImage(t.Context(), 0); !fault.Is(err, fault.Busy) || !strings.Contains(err.Error(), "flatten") {
		t.Errorf("with a clone that depends on it: %v", err)
	}
	check(t, o.FlattenImage(t.Context(), clone))
	if img := mustImage(t, o, clone); !img.Flatten {
		t.Error("nobody was told to flatten it")
	}
	cloned(t, o, clone, "copy")
	check(t, o.DeleteImage(t.Context(), 0))
	if _, err := o.CloneImage(t.Context(), 0, CloneImage{Name: "late", Datastore: -1}); !fault.Is(err, fault.WrongState) {
		t.Errorf("clone of what is being deleted: %v", err)
	}
}

func TestPersistentImageIsClonedAlone(t *testing.T) {
	o := cloudOf(t)
	mine := ready(t, o, "NAME=mine\nPATH=/srv/mine.img\nPERSISTENT=YES", "raw", 1<<20)
	tmpl := parse(t, "CPU=1\nMEMORY=64\nDISK=[IMAGE=mine]")
	ids, err := o.CreateVMs(t.Context(), CreateVMs{TemplateID: -1, Text: tmpl, Count: 1, Hold: true})
	check(t, err)
	if _, err := o.CloneImage(t.Context(), mine, CloneImage{Name: "c", Datastore: -1}); !fault.Is(err, fault.Busy) {
		t.Errorf("clone of an image in use: %v", err)
	}
	check(t, o.Action(t.Context(), ids[0], "terminate"))
	clone, err := o.CloneImage(t.Context(), mine, CloneImage{Name: "c", Datastore: -1})
	check(t, err)
	if _, err := o.CreateVMs(t.Context(), CreateVMs{TemplateID: -1, Text: tmpl, Count: 1}); err == nil || !strings.Contains(err.Error(), "being cloned") {
		t.Errorf("a machine on an image that is being cloned: %v", err)
	}
	cloned(t, o, clone, "copy")
	if _, err := o.CreateVMs(t.Context(), CreateVMs{TemplateID: -1, Text: tmpl, Count: 1}); err != nil {
		t.Error(err)
	}
}

func TestHostsAreToldWhereAnIndexIs(t *testing.T) {
	o := webCloud(t, "")
	vm, err := oneVM(t, o, "IMAGE=far")
	check(t, err)
	for _, in := range []int{0, cloud.DefaultDatastore} {
		_, revision, err := o.Inv.Images.Update(t.Context(), vm.Disks[0].ImageID, func(i *cloud.Image) error {
			i.IndexIn = in
			return nil
		})
		check(t, err)
		check(t, o.Inv.WaitFor(t.Context(), revision))
		a, err := lifecycle.Assignment(&vm, o.Inv)
		check(t, err)
		img := a.Machine.Disks[0].Image
		if in == 0 && img.IndexRepository != nil || in != 0 && (img.IndexRepository.GetId() != int64(in) || img.IndexObject != "image-7.idx") {
			t.Errorf("index in %d: %v", in, img)
		}
	}
}
