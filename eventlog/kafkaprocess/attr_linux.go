package kafkaprocess

import "syscall"

// childAttr makes the child end with this process, and keeps a terminal's
// Ctrl-C from it: this process stops it in its own time.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
