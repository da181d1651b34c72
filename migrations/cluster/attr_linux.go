package cluster

import "syscall"

// childAttr makes Postgres shut down when this process ends, and keeps a
// terminal's Ctrl-C from it: what still writes is to finish first.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGINT}
}
