package file

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"hayloft/cloud/fault"
	"hayloft/disk/localstore"
	"hayloft/internal/durable"
)

func (s *Store) machinePath(id int) string {
	return filepath.Join(s.machineRoot(), fmt.Sprintf("%d.json", id))
}

func (s *Store) loadMachines() error {
	entries, err := os.ReadDir(s.machineRoot())
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(s.machineRoot(), e.Name())
		if strings.Contains(e.Name(), partMark) {
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			continue
		}
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // another process dropped it just now
		}
		if err != nil {
			return err
		}
		var m localstore.Machine
		if err := json.Unmarshal(text, &m); err != nil {
			return fault.Errorf(fault.Corrupt, "record %s: %w", path, err)
		}
		s.machines[m.ID] = m
	}
	return nil
}

// PutMachine implements localstore.Store. The caller serialises per machine.
func (s *Store) PutMachine(_ context.Context, m localstore.Machine) error {
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if err := durable.WriteFile(s.machinePath(m.ID), text, 0o600); err != nil {
		return s.errorf(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.machines[m.ID] = m
	return nil
}

// DropMachine implements localstore.Store.
func (s *Store) DropMachine(_ context.Context, id int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := os.Remove(s.machinePath(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return s.errorf(err)
	}
	delete(s.machines, id)
	return nil
}

// Machines implements localstore.Store.
func (s *Store) Machines(context.Context) ([]localstore.Machine, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]localstore.Machine, 0, len(s.machines))
	for _, m := range s.machines {
		list = append(list, m)
	}
	slices.SortFunc(list, func(a, b localstore.Machine) int { return cmp.Compare(a.ID, b.ID) })
	return list, nil
}
