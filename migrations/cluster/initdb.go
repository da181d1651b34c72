package cluster

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// initialise creates the cluster's files if they do not exist, and returns the
// owner's password.
func initialise(ctx context.Context, bin, data, passwordFile string, who *identity) (string, error) {
	if _, err := os.Stat(filepath.Join(data, "PG_VERSION")); err == nil {
		b, err := os.ReadFile(passwordFile)
		if err != nil {
			return "", fmt.Errorf("the cluster in %s cannot be used without its password: %w; remove the directory to start with an empty one", data, err)
		}
		return strings.TrimSpace(string(b)), nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	password := rand.Text()
	if err := os.WriteFile(passwordFile, []byte(password+"\n"), 0o600); err != nil {
		return "", err
	}
	// initdb works in a directory beside the final one, which is renamed when it is
	// complete. So a start that was killed leaves nothing that looks like a cluster.
	part := data + ".part"
	if err := os.RemoveAll(part); err != nil {
		return "", err
	}
	if err := os.Mkdir(part, 0o700); err != nil {
		return "", err
	}
	f, err := os.Open(part)
	if err != nil {
		return "", err
	}
	if err := errors.Join(who.own(f), f.Close()); err != nil {
		return "", err
	}
	pipe, writePipe, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer pipe.Close()
	_, err = writePipe.WriteString(password + "\n") // short enough for the pipe's buffer, so it does not block
	if err := errors.Join(err, writePipe.Close()); err != nil {
		return "", err
	}
	// initdb opens the pipe by its name, /dev/stdin. That is permitted only if the pipe
	// belongs to initdb's user.
	if err := who.own(pipe); err != nil {
		return "", err
	}
	cmd, release, err := who.command(ctx, filepath.Join(bin, "initdb"), part, "-U", owner, "--pwfile=/dev/stdin",
		"--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-instructions")
	if err != nil {
		return "", err
	}
	defer release()
	cmd.Stdin = pipe
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("initdb: %w\n%s", err, out)
	}
	if err := os.Remove(data); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	return password, os.Rename(part, data)
}
