package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"hayloft/cloud/fault"
)

// Clean takes down what an agent leaves on a host that has no machines any more: networks, the agent's
// database, key and directories. No agent may run with this configuration. Errors: fault.Busy when one
// does, or when machines are still here, naming them; then nothing is changed.
func Clean(ctx context.Context, cfg Config) error {
	if err := cfg.complete(); err != nil {
		return err
	}
	if _, err := os.Stat(cfg.StateDir); err == nil {
		records, err := openRecords(cfg.StateDir, true)
		if err != nil {
			return err
		}
		defer records.close()
	}
	a := &Agent{cfg: cfg, listers: make(map[string]*lister)}
	for name, driver := range cfg.Hypervisors {
		a.listers[name] = &lister{driver: driver, ctx: ctx}
	}
	here, err := a.traces(ctx)
	if err != nil {
		return fmt.Errorf("host %s: %w", cfg.Name, err)
	}
	if len(here) > 0 {
		return fault.Errorf(fault.Busy, "host %s: machines %v are still here", cfg.Name, slices.Sorted(maps.Keys(here)))
	}
	if err := cfg.Network.Cleanup(ctx); err != nil {
		return fmt.Errorf("host %s: networks: %w", cfg.Name, err)
	}
	for _, path := range []string{cfg.machinesDir(), filepath.Join(cfg.StateDir, identityFile), recordsPath(cfg.StateDir), heardPath(cfg.StateDir)} {
		err = errors.Join(err, os.RemoveAll(path))
	}
	if err != nil {
		return fmt.Errorf("host %s: %w", cfg.Name, err)
	}
	_ = os.Remove(cfg.StateDir) // unless others keep something there
	return nil
}
