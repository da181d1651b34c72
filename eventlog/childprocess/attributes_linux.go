package childprocess

import "syscall"

// Attributes returns the attributes of a child that the kernel signals with
// parentDied when this process ends. The child has a process group of its own,
// so that a terminal's Ctrl-C does not reach it: this process stops it in order.
func Attributes(parentDied syscall.Signal) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: parentDied}
}
