package golden

// Cmdline is the kernel command line of tiny, in the boot loader of the whole disk and for OS/KERNEL_CMD.
const Cmdline = "console=ttyS0 quiet nokaslr mitigations=off tsc=reliable no_timer_check random.trust_cpu=on 8250.nr_uarts=1 panic=-1"
