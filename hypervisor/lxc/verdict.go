package lxc

import (
	"os"
	"regexp"
	"strings"

	"hayloft/hypervisor"
)

// endLine is how lxc's log tells how process 1 ended (lxc_error_set_and_log): on a signal or with a status
// other than 0. A guest's poweroff(8) shows as SIGINT, its reboot(8) as SIGHUP, see reboot(2).
var endLine = regexp.MustCompile(`Child <\d+> ended on (?:signal (.*)\((\d+)\)|error \((\d+)\))`)

// verdict reads from the log how a container ended whose monitor is gone. The log is the only witness when
// nobody was looking: the monitor takes process 1's status with it.
func verdict(log string) (hypervisor.Status, string) {
	const lost = "lxc's monitor of the container died"
	status, reason := hypervisor.Crashed, lost
	for line := range strings.Lines(log) {
		switch end := endLine.FindStringSubmatch(line); {
		case end == nil && strings.Contains(line, ":post_start:"): // a boot
			status, reason = hypervisor.Crashed, lost
		case end == nil && strings.Contains(line, `"`+postStop+`"`) && reason == lost:
			// Taken down in order, and no word of a signal or status: process 1 returned 0.
			status, reason = hypervisor.Off, "process 1 ended"
		case end == nil:
		case end[2] == "2":
			status, reason = hypervisor.Off, "powered off"
		case end[2] == "1":
			status, reason = hypervisor.Crashed, "did not come back after a reboot"
		case end[2] != "":
			status, reason = hypervisor.Crashed, "process 1 was ended by signal "+end[2]+" ("+end[1]+")"
		default:
			status, reason = hypervisor.Crashed, "process 1 ended with status "+end[3]
		}
	}
	return status, reason
}

const logTail = 256 << 10

func readTail(path string, limit int64) []byte {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	size, err := f.Seek(0, 2)
	if err != nil {
		return nil
	}
	buffer := make([]byte, min(size, limit))
	n, _ := f.ReadAt(buffer, size-int64(len(buffer)))
	return buffer[:n]
}

// complaints are the last errors in lxc's log and its stderr, in one line, for the error of a failed start.
func complaints(p paths) string {
	var lines []string
	for line := range strings.Lines(string(readTail(p.log(), logTail))) {
		if fields := strings.Fields(line); len(fields) > 4 && (fields[3] == "ERROR" || fields[3] == "FATAL") {
			_, text, _ := strings.Cut(strings.TrimSpace(line), " - ")
			if _, message, ok := strings.Cut(text, " - "); ok {
				text = message
			}
			lines = append(lines, text)
		}
	}
	if len(lines) == 0 {
		lines = strings.Split(strings.TrimSpace(string(readTail(p.stderr(), 2048))), "\n")
	}
	return strings.Join(lines[max(0, len(lines)-6):], "; ")
}
