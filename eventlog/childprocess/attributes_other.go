//go:build !linux

package childprocess

import "syscall"

// Attributes returns the attributes of a child with a process group of its own.
// Only Linux can signal the child when this process ends.
func Attributes(syscall.Signal) *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
