package guest

import (
	"bytes"
	"context"
	"fmt"
	"path"
	"strings"
	"time"

	"hayloft/internal/command"
)

// innerLimit is how long one test may take in the guest: time that a stuck one costs. On a busy machine a guest gets a sixth of a
// processor.
const innerLimit = 15 * time.Minute

// Test runs one test in the guest, of a program that BuildTests made and that is in Config.Programs by that name. It
// returns what the test printed, and an error unless it passed: a test that was skipped or is not there fails.
// The environment is added to what labtest looks at.
func (g *Guest) Test(ctx context.Context, program, name string, env ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, innerLimit+10*time.Second)
	defer cancel()
	file := path.Join("/programs", program)
	var output bytes.Buffer
	exit, err := g.Stream(ctx, command.Cmd{Name: file, Dir: path.Dir(file),
		Args: []string{"-test.v", "-test.run=^" + name + "$", "-test.timeout=" + innerLimit.String()},
		Env:  append([]string{"HAYLOFT_GUEST=1", "HAYLOFT_LAB=1", "HAYLOFT_GUEST_DISKS=" + strings.Join(g.DiskPaths(), " ")}, env...)},
		&output, &output)
	switch {
	case err != nil:
	case !strings.Contains("\n"+output.String(), "\n--- PASS: "+name+" ("):
		err = fmt.Errorf("%s did not pass in the guest: exit status %d", name, exit)
	case exit != 0:
		err = fmt.Errorf("%s passed in the guest, but its program failed: exit status %d", name, exit)
	}
	return output.String(), err
}
