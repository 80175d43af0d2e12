package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// staleAfter is for how long the server is trusted not to have given an absent host's machines to another.
const staleAfter = 10 * time.Minute

// The time stamp of this file is when the server was last heard. It need not survive the host's crash.
func heardPath(stateDir string) string { return filepath.Join(stateDir, "heard") }

func lastHeard(stateDir string) (time.Time, error) {
	info, err := os.Stat(heardPath(stateDir))
	if errors.Is(err, fs.ErrNotExist) {
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("when the server was heard: %w", err)
	}
	return info.ModTime(), nil
}

// hear notes that the server is there.
func (a *Agent) hear() error {
	now, path := time.Now(), heardPath(a.cfg.StateDir)
	err := os.Chtimes(path, now, now)
	if errors.Is(err, fs.ErrNotExist) {
		err = os.WriteFile(path, nil, 0o600)
	}
	if err != nil {
		return fmt.Errorf("when the server was heard: %w", err)
	}
	return nil
}

// mustAsk says whether the server has to be heard before anything is started: this host was on its own
// for so long that the machine may run elsewhere by now.
func (p *pass) mustAsk() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stale && !p.synced
}
