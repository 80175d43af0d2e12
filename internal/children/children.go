// Package children finds the processes that a process has started. It reads every process's parent: the kernel's own
// list, /proc/PID/task/TID/children, may leave one out while another ends (proc(5): it is "reliable only if all the
// child processes are stopped or frozen").
package children

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strconv"
)

// Of are the ids of the processes whose parent is process pid, zombies among them, in the order of their numbers.
// None when there is no such process.
func Of(pid int) []int {
	return parents()[pid]
}

// Under are the ids of all that process pid has started, with what those have started: parents before children.
func Under(pid int) []int {
	of := parents()
	all := slices.Clone(of[pid])
	for i := 0; i < len(all); i++ {
		all = append(all, of[all[i]]...)
	}
	return all
}

// parents has every process under its parent.
func parents() map[int][]int {
	files, _ := filepath.Glob("/proc/[0-9]*/stat") // no error: the pattern is good
	of := map[int][]int{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // ended meanwhile
		}
		// pid (name, which may have brackets and blanks) state parent ...
		fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
		if len(fields) < 2 {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			continue
		}
		if parent, err := strconv.Atoi(string(fields[1])); err == nil {
			of[parent] = append(of[parent], pid)
		}
	}
	for _, pids := range of {
		slices.Sort(pids)
	}
	return of
}
