package blockd

func daemonMain() bool { return false }
