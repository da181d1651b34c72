package settings

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
)

// Running is what a serve writes into its data directory for the tools beside it.
type Running struct {
	PID         int      `json:"pid"`
	Brokers     []string `json:"brokers"`
	DatabaseURL string   `json:"databaseUrl,omitempty"` // only of the private database, because the URL of a configured one has a password
	URL         string   `json:"url"`
}

// RunningFile returns the path of the file in a data directory.
func RunningFile(dir string) string { return filepath.Join(dir, "running.json") }

// Write replaces the file in a data directory. Only its owner may read it.
func (r Running) Write(dir string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(RunningFile(dir), b)
}

// writeFile replaces a file. Only its owner may read the new one (mode 0600),
// whatever the mode of the old one was.
func writeFile(path string, b []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".new*") // mode 0600
	if err != nil {
		return err
	}
	_, err = tmp.Write(append(b, '\n'))
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
	}
	return err
}

// ReadRunning reads the file in a data directory. The error is fs.ErrNotExist if there
// is no file, so no serve runs there.
func ReadRunning(dir string) (r Running, err error) {
	b, err := os.ReadFile(RunningFile(dir))
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(b, &r)
}
