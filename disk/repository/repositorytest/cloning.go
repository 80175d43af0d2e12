package repositorytest

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
)

// cloneSize is odd on purpose: no storage has units of it.
const cloneSize = 1<<20 + 1234

// Cloning is the suite of repository.Cloner, for drivers that have it, or one of several parts of it: for where it takes long.
func Cloning(t *testing.T, open func(t *testing.T) repository.Repository, part, parts int) {
	if _, ok := open(t).(repository.Cloner); !ok {
		return
	}
	for i, test := range []struct {
		name string
		run  func(*testing.T, repository.Repository, repository.Cloner)
	}{
		{"same content", sameContent},
		{"what a clone writes is its own", ownWrites},
		{"clones of clones", deepClones},
		{"longer", longer},
		{"abort", abortClone},
		{"invisible until commit", invisibleClone},
		{"parents that are deleted", deleteParent},
		{"flatten", flatten},
		{"names", cloneNames},
		{"ended context", endedClone},
		{"index beside the parent", cloneWithIndex},
		{"persistent parent", persistentParent},
		{"undrained parent", undrainedParent},
	} {
		if i%parts != part {
			continue
		}
		t.Run(test.name, func(t *testing.T) {
			r := open(t)
			test.run(t, r, r.(repository.Cloner))
		})
	}
}

// noise is content that no storage can guess, with a hole in the middle.
func noise(seed uint64) string {
	var key [32]byte
	key[0] = byte(seed)
	b := make([]byte, cloneSize)
	rand.NewChaCha8(key).Read(b)
	clear(b[300_000:700_000])
	return string(b)
}

// changed is content with text at offset; it may become longer.
func changed(content, text string, offset int) string {
	b := []byte(content)
	if short := offset + len(text) - len(b); short > 0 {
		b = append(b, make([]byte, short)...)
	}
	copy(b[offset:], text)
	return string(b)
}

func begin(t *testing.T, c repository.Cloner, from, name string) (repository.Writer, repository.CloneKind) {
	t.Helper()
	w, kind, err := c.CreateFrom(t.Context(), from, name)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains([]repository.CloneKind{repository.Copied, repository.Reflinked, repository.ThinClone, repository.RBDClone, repository.LVMSnapshot}, kind) {
		t.Errorf("clone of kind %q", kind)
	}
	return w, kind
}

// derive makes a clone that differs from its parent by text at offset.
func derive(t *testing.T, c repository.Cloner, from, name, text string, offset int64) repository.CloneKind {
	t.Helper()
	w, kind := begin(t, c, from, name)
	defer w.Abort()
	if text != "" {
		if _, err := w.WriteAt([]byte(text), offset); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	return kind
}

func same(t *testing.T, r repository.Repository, name, want string) {
	t.Helper()
	got := read(t, r, name)
	if got == want {
		return
	}
	at := 0
	for at < min(len(got), len(want)) && got[at] == want[at] {
		at++
	}
	t.Errorf("%s: %d bytes for %d, the first difference is at %d", name, len(got), len(want), at)
}

func present(t *testing.T, r repository.Repository, want ...string) {
	t.Helper()
	all, err := r.List(t.Context(), "")
	var got []string
	for _, i := range all {
		got = append(got, i.Name)
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("there are %q, want %q; %v", got, want, err)
	}
}

func sameContent(t *testing.T, r repository.Repository, c repository.Cloner) {
	for i, content := range []string{noise(1), "small", ""} {
		from, to := "d/from"+string(rune('a'+i)), "e/to"+string(rune('a'+i))
		create(t, r, from, content)
		derive(t, c, from, to, "", 0)
		same(t, r, to, content)
		same(t, r, from, content)
		if info, err := r.Stat(t.Context(), to); err != nil || info.Size != int64(len(content)) || info.Name != to {
			t.Errorf("%+v, %v", info, err)
		}
	}
}

func ownWrites(t *testing.T, r repository.Repository, c repository.Cloner) {
	content := noise(2)
	create(t, r, "a", content)
	w, _ := begin(t, c, "a", "b")
	defer w.Abort()
	want := content
	for text, offset := range map[string]int{"first": 0, "in the hole": 500_001, "across": 1<<20 - 3, "end": cloneSize - 3} {
		if n, err := w.WriteAt([]byte(text), int64(offset)); n != len(text) || err != nil {
			t.Fatal(n, err)
		}
		want = changed(want, text, offset)
	}
	got := make([]byte, cloneSize)
	if n, err := w.ReadAt(got, 0); n != cloneSize || string(got) != want {
		t.Errorf("the writer reads %d bytes that are right: %v, %v", n, string(got[:n]) == want[:n], err)
	}
	same(t, r, "a", content)
	if err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	same(t, r, "b", want)
	same(t, r, "a", content)
}

func deepClones(t *testing.T, r repository.Repository, c repository.Cloner) {
	contents := []string{noise(3)}
	name := func(depth int) string { return "depth/" + string(rune('0'+depth)) }
	create(t, r, name(0), contents[0])
	for depth := 1; depth <= 5; depth++ {
		text := strings.Repeat(name(depth), 1000)
		derive(t, c, name(depth-1), name(depth), text, int64(depth*150_000))
		contents = append(contents, changed(contents[depth-1], text, depth*150_000))
	}
	for depth, content := range contents {
		same(t, r, name(depth), content)
	}
	for depth := 5; depth >= 0; depth-- { // nobody depends on the last
		if err := r.Delete(t.Context(), name(depth)); err != nil {
			t.Error(err)
		}
	}
	none(t, r)
}

func longer(t *testing.T, r repository.Repository, c repository.Cloner) {
	content := noise(4)
	create(t, r, "a", content)
	w, _ := begin(t, c, "a", "b")
	defer w.Abort()
	class(t, "cut", w.SetSize(1000), fault.Invalid)
	const size = 3<<20 + 7
	if err := w.SetSize(size); err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt([]byte("far"), size-3); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	same(t, r, "b", changed(content, "far", size-3))
	same(t, r, "a", content)
	derive(t, c, "b", "c", "", 0)
	same(t, r, "c", changed(content, "far", size-3))
}

func abortClone(t *testing.T, r repository.Repository, c repository.Cloner) {
	content := noise(5)
	create(t, r, "a", content)
	for range 2 {
		w, _ := begin(t, c, "a", "d/b")
		if _, err := w.WriteAt([]byte("x"), 100); err != nil {
			t.Fatal(err)
		}
		if err := w.Abort(); err != nil {
			t.Fatal(err)
		}
	}
	present(t, r, "a")
	same(t, r, "a", content)
	if err := r.Delete(t.Context(), "a"); err != nil {
		t.Errorf("the parent of nobody: %v", err)
	}
	none(t, r)
}

func invisibleClone(t *testing.T, r repository.Repository, c repository.Cloner) {
	create(t, r, "a", noise(6))
	w, _ := begin(t, c, "a", "b")
	defer w.Abort()
	present(t, r, "a")
	_, err := r.Open(t.Context(), "b")
	class(t, "open", err, fault.NotFound)
	_, err = r.Stat(t.Context(), "b")
	class(t, "stat", err, fault.NotFound)
	_, _, err = c.CreateFrom(t.Context(), "a", "b")
	class(t, "second clone of that name", err, fault.Busy)
	_, err = r.Create(t.Context(), "b")
	class(t, "second writer", err, fault.Busy)
	if err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	present(t, r, "a", "b")
	_, _, err = c.CreateFrom(t.Context(), "a", "b")
	class(t, "clone to what is there", err, fault.Exists)
	same(t, r, "b", noise(6))
}

func parent(t *testing.T, c repository.Cloner, name, want string) {
	t.Helper()
	if got, err := c.Parent(t.Context(), name); err != nil || got != want {
		t.Errorf("the parent of %s is %q, %v; want %q", name, got, err, want)
	}
}

func deleteParent(t *testing.T, r repository.Repository, c repository.Cloner) {
	content := noise(7)
	create(t, r, "d/a", content)
	parent(t, c, "d/a", "")
	kind := derive(t, c, "d/a", "d/b", "one", 10)
	derive(t, c, "d/a", "e/c", "two", 10)
	if !kind.Depends() {
		parent(t, c, "d/b", "")
		if err := r.Delete(t.Context(), "d/a"); err != nil {
			t.Fatal(err)
		}
		present(t, r, "d/b", "e/c")
		same(t, r, "d/b", changed(content, "one", 10))
		same(t, r, "e/c", changed(content, "two", 10))
		return
	}
	parent(t, c, "d/b", "d/a")
	err := r.Delete(t.Context(), "d/a")
	class(t, "delete under clones", err, fault.Busy)
	for _, name := range []string{"d/b", "e/c"} {
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%v does not say %s", err, name)
		}
	}
	same(t, r, "d/a", content)
	same(t, r, "d/b", changed(content, "one", 10))
	for _, name := range []string{"d/b", "e/c", "d/a"} {
		if err := r.Delete(t.Context(), name); err != nil {
			t.Errorf("delete %s: %v", name, err)
		}
	}
	none(t, r)
}

func flatten(t *testing.T, r repository.Repository, c repository.Cloner) {
	content := noise(8)
	create(t, r, "a", content)
	derive(t, c, "a", "b", "one", 10)
	derive(t, c, "b", "c", "two", 20)
	want := changed(changed(content, "one", 10), "two", 20)
	for _, name := range []string{"a", "b", "b"} {
		if err := c.Flatten(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		parent(t, c, name, "")
	}
	if err := r.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	same(t, r, "b", changed(content, "one", 10))
	same(t, r, "c", want)
	if err := c.Flatten(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	if err := r.Delete(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	same(t, r, "c", want)
	present(t, r, "c")
}

func cloneNames(t *testing.T, r repository.Repository, c repository.Cloner) {
	_, _, err := c.CreateFrom(t.Context(), "d/gone", "e/b")
	class(t, "from what is not there", err, fault.NotFound)
	if err != nil && !strings.Contains(err.Error(), "d/gone") {
		t.Errorf("%v does not say d/gone", err)
	}
	_, err = c.Parent(t.Context(), "gone")
	class(t, "parent of what is not there", err, fault.NotFound)
	class(t, "flatten what is not there", c.Flatten(t.Context(), "gone"), fault.NotFound)
	none(t, r)
	create(t, r, "a", "x")
	create(t, r, "b", "y")
	_, _, err = c.CreateFrom(t.Context(), "a", "b")
	class(t, "to what is there", err, fault.Exists)
	_, _, err = c.CreateFrom(t.Context(), "a", "a")
	class(t, "to itself", err, fault.Exists)
	for _, bad := range []string{"", "/a", "../a", "a//b", ".a", "a\x00b"} {
		_, _, err = c.CreateFrom(t.Context(), bad, "c")
		class(t, "from "+bad, err, fault.Invalid)
		_, _, err = c.CreateFrom(t.Context(), "a", bad)
		class(t, "to "+bad, err, fault.Invalid)
		_, err = c.Parent(t.Context(), bad)
		class(t, "parent of "+bad, err, fault.Invalid)
		class(t, "flatten "+bad, c.Flatten(t.Context(), bad), fault.Invalid)
	}
	present(t, r, "a", "b")
	same(t, r, "b", "y")
}

// endedClone: whenever the caller leaves, before, in the middle or before the commit, there is nothing of the clone.
func endedClone(t *testing.T, r repository.Repository, c repository.Cloner) {
	content := noise(9)
	create(t, r, "a", content)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := c.CreateFrom(ctx, "a", "b"); err == nil {
		t.Error("cloned")
	}
	for _, patience := range []time.Duration{100 * time.Microsecond, 3 * time.Millisecond, 20 * time.Millisecond} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		w, _, err := c.CreateFrom(ctx, "a", "b")
		if err == nil {
			<-ctx.Done()
			if err := w.Commit(ctx); err == nil {
				t.Error("committed")
			}
			if err := w.Abort(); err != nil {
				t.Error(err)
			}
		}
		cancel()
	}
	present(t, r, "a")
	w, _, err := c.CreateFrom(t.Context(), "a", "b")
	for until := time.Now().Add(2 * time.Minute); fault.Is(err, fault.Busy) && time.Now().Before(until); {
		time.Sleep(10 * time.Millisecond) // whoever leaves at once leaves the tidying to others
		w, _, err = c.CreateFrom(t.Context(), "a", "b")
	}
	if err != nil {
		t.Fatalf("the name is not free: %v", err)
	}
	if err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	same(t, r, "b", content)
	same(t, r, "a", content)
}
