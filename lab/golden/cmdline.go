package golden

import "fmt"

// Cmdline is the kernel command line of tiny for OS/KERNEL_CMD. Besides the console, each word saves
// CPU time of an emulated processor:
//
//	cryptomgr.notests     0.3 s: no self-tests of ciphers
//	noreplace-smp         0.1 s: patches less of the kernel's own code, which the emulator would translate again
//	random.trust_cpu=on   1.2 s, if the processor has RDRAND: no gathering of entropy from timer jitter
//	8250.nr_uarts=1       no search for three more serial ports
//	tsc=reliable          no watchdog for the time stamp counter
const Cmdline = "console=ttyS0 quiet panic=-1 nokaslr mitigations=off tsc=reliable no_timer_check " +
	"random.trust_cpu=on 8250.nr_uarts=1 cryptomgr.notests noreplace-smp"

// CmdlinePC is Cmdline for the machine types pc and q35, not for microvm, which has its interrupts in ACPI
// tables only. On pc it saves another 0.35 s, which the interpreter of ACPI would need to find interrupt lines.
const CmdlinePC = Cmdline + " acpi=noirq"

// CmdlineMicrovm is Cmdline for microvm on an emulated processor. That machine has no second clock to
// calibrate the time stamp counter against, and on a busy host the kernel's attempt fails and it hangs; so
// it is told the rate, which under TCG is the host's own (package tsc measures it).
func CmdlineMicrovm(kHz uint64) string { return fmt.Sprintf("%s tsc_early_khz=%d", Cmdline, kHz) }
