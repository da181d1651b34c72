package cluster

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"runtime"
	"strconv"
	"syscall"

	"tomato/eventlog/childprocess"
)

// identity is the user that Postgres runs as. nil is the user of this process.
type identity struct{ uid, gid uint32 }

// runAs returns the user that Postgres is to run as: the system user postgres if this
// process is root, and otherwise the user of this process.
func runAs() (*identity, error) {
	if os.Getuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, fmt.Errorf("%w: there is no system user postgres, and Postgres does not run as root: %s", ErrAbsent, install)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	return &identity{uid: uint32(uid), gid: uint32(gid)}, nil
}

// own gives the open file or directory to the identity.
func (i *identity) own(f *os.File) error {
	if i == nil {
		return nil
	}
	return f.Chown(int(i.uid), int(i.gid))
}

// command returns a command that runs a program of Postgres on the directory
// data, as the identity. Call release once it has started.
func (i *identity) command(ctx context.Context, path, data string, args ...string) (cmd *exec.Cmd, release func(), err error) {
	cmd = exec.CommandContext(ctx, path, args...)
	release = func() {}
	cmd.SysProcAttr = childprocess.Attributes(syscall.SIGINT) // a "fast" shutdown in order
	if i != nil {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: i.uid, Gid: i.gid, Groups: []uint32{i.gid}}
	}
	if i != nil && runtime.GOOS == "linux" {
		// That user may have no permission to reach the directory, for example if it
		// is below /root. So the child gets the directory opened, and reaches it by
		// /proc/self/fd, which checks no permissions of the parent directories.
		f, err := os.Open(data)
		if err != nil {
			return nil, nil, err
		}
		release = func() { f.Close() }
		cmd.ExtraFiles = []*os.File{f}
		data = "/proc/self/fd/3"
	}
	cmd.Args = append([]string{path, "-D", data}, args...)
	cmd.Dir = "/"
	// The child gets no other variable of this process. They may contain secrets, and
	// Postgres would take PG… variables for settings.
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
	return cmd, release, nil
}
