package agent

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"google.golang.org/protobuf/proto"

	"hayloft/cloud/fault"
	"hayloft/wire"
)

// Where the disks of a machine are.
const (
	noDisks    = ""
	preparing  = "preparing"
	ready      = "ready"
	stashing   = "stashing"
	stashed    = "stashed"
	disksGone  = "gone"
	noDomain   = ""
	starting   = "starting"
	running    = "running"
	saving     = "saving"
	saved      = "saved"
	domainOff  = "off"
	domainDied = "crashed"
)

// reached is what became of a machine on this host, written before and after every step that must be
// neither lost nor repeated. Only the machine's worker changes it.
type reached struct {
	Epoch  uint64 // the assignment that Timing, Failure and StopSince are about
	Disks  string
	Domain string

	Hypervisor string // whose domain it is
	StartEpoch uint64 // epoch of the last start begun
	RunEpoch   uint64 // epoch for which it was last seen running
	Reason     string // why the domain ended
	Failure    *failure
	Timing     timing
	StopSince  int64 // Unix nanoseconds of the first request to power off
	Reboot     uint64
	Saves      map[uint64]*saveResult
	SavingDisk uint64          // operation whose save was begun last
	Sizes      map[int32]int64 // of disks as last prepared, as the assignment gave them
	DropStash  bool            // disks came from the stash, which is still there
	Restoring  bool            // the last start continued saved memory
	Extra      []string        // further files of a stash under way
	Ports      []string        // plugged, or about to be
	Orphan     bool            // the server no longer knows it
	Warning    string          // why it is off without its repositories having all that it wrote

	RepositoryBytes, GivenBytes int64
}

type failure struct {
	Step  wire.Step
	Error string
	Class string
}

type timing struct{ Received, PrepareStart, PrepareEnd, BootStart, BootEnd, End int64 }

type saveResult struct {
	Error, Class, Digest, Format string
	Size, Moved                  int64
	Clone                        string
}

var (
	assignmentsBucket = []byte("assignments") // vm -> wire.Assignment
	reachedBucket     = []byte("reached")     // vm -> reached, JSON
	networksBucket    = []byte("networks")    // id -> wire.Network
)

// records is the agent's local database.
type records struct {
	db    *bbolt.DB
	turn  sync.Mutex // one transaction at a time
	mu    sync.Mutex
	queue []*change
}

type change struct {
	apply func(*bbolt.Tx) error
	err   error
}

// write applies a change durably. Changes that come while a transaction is being written share the next.
func (r *records) write(apply func(*bbolt.Tx) error) error {
	mine := &change{apply: apply}
	r.mu.Lock()
	r.queue = append(r.queue, mine)
	r.mu.Unlock()
	r.turn.Lock()
	defer r.turn.Unlock()
	r.mu.Lock()
	batch := r.queue
	r.queue = nil
	r.mu.Unlock()
	if len(batch) == 0 { // somebody wrote mine along with theirs
		return mine.err
	}
	err := r.db.Update(func(tx *bbolt.Tx) error {
		for _, c := range batch {
			if err := c.apply(tx); err != nil {
				return err
			}
		}
		return nil
	})
	for _, c := range batch {
		c.err = err
	}
	return err
}

func recordsPath(stateDir string) string { return filepath.Join(stateDir, "agent.db") }

// openRecords opens the database, or makes it. Without sync it survives the end of the agent, not of the host.
func openRecords(stateDir string, sync bool) (*records, error) {
	path := recordsPath(stateDir)
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second, NoSync: !sync})
	if errors.Is(err, berrors.ErrTimeout) {
		return nil, fault.Errorf(fault.Busy, "%s: another agent uses it", path)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{assignmentsBucket, reachedBucket, networksBucket} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), db.Close())
	}
	return &records{db: db}, nil
}

func (r *records) close() error { return r.db.Close() }

func key(id int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(id)) }

func (r *records) each(fn func(vm int64, assignment *wire.Assignment, r *reached)) error {
	return r.db.View(func(tx *bbolt.Tx) error {
		reachedRecords := tx.Bucket(reachedBucket)
		return tx.Bucket(assignmentsBucket).ForEach(func(k, v []byte) error {
			vm := int64(binary.BigEndian.Uint64(k))
			assignment, state := new(wire.Assignment), new(reached)
			if err := proto.Unmarshal(v, assignment); err != nil {
				return fault.Errorf(fault.Corrupt, "record of machine %d: %w", vm, err)
			}
			if content := reachedRecords.Get(k); content != nil {
				if err := json.Unmarshal(content, state); err != nil {
					return fault.Errorf(fault.Corrupt, "record of machine %d: %w", vm, err)
				}
			}
			fn(vm, assignment, state)
			return nil
		})
	})
}

// assign keeps assignments, all or none.
func (r *records) assign(assignments []*wire.Assignment) error {
	if len(assignments) == 0 {
		return nil
	}
	return r.write(func(tx *bbolt.Tx) error {
		bucket := tx.Bucket(assignmentsBucket)
		for _, assignment := range assignments {
			content, err := proto.Marshal(assignment)
			if err != nil {
				return fmt.Errorf("assignment of machine %d: %w", assignment.Vm, err)
			}
			if err := bucket.Put(key(assignment.Vm), content); err != nil {
				return err
			}
		}
		return nil
	})
}

// reach keeps what a machine reached; writes of several machines share one transaction.
func (r *records) reach(vm int64, state *reached) error {
	content, err := json.Marshal(state)
	if err != nil {
		return err
	}
	err = r.write(func(tx *bbolt.Tx) error { return tx.Bucket(reachedBucket).Put(key(vm), content) })
	if err != nil {
		return fmt.Errorf("record of machine %d: %w", vm, err)
	}
	return nil
}

// forget deletes all that is kept of a machine.
func (r *records) forget(vm int64) error {
	return r.write(func(tx *bbolt.Tx) error {
		return errors.Join(tx.Bucket(assignmentsBucket).Delete(key(vm)), tx.Bucket(reachedBucket).Delete(key(vm)))
	})
}

func (r *records) networks() ([]*wire.Network, error) {
	var all []*wire.Network
	err := r.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(networksBucket).ForEach(func(_, v []byte) error {
			n := new(wire.Network)
			all = append(all, n)
			return proto.Unmarshal(v, n)
		})
	})
	if err != nil {
		return nil, fault.Errorf(fault.Corrupt, "records of networks: %w", err)
	}
	return all, nil
}

func (r *records) addNetwork(n *wire.Network) error {
	content, err := proto.Marshal(n)
	if err != nil {
		return err
	}
	return r.write(func(tx *bbolt.Tx) error { return tx.Bucket(networksBucket).Put(key(n.Id), content) })
}

func (r *records) removeNetwork(id int64) error {
	return r.write(func(tx *bbolt.Tx) error { return tx.Bucket(networksBucket).Delete(key(id)) })
}
