package server_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

	"tomato/cmd/tomato/server"
	"tomato/cmd/tomato/settings"
)

// The file that serve writes for the tools beside it does not contain a configured
// address with a password, and only its owner may read it. The error of a tool says
// which setting it lacks.
func TestRunningHoldsNoConfiguredPassword(t *testing.T) {
	t.Parallel()
	var dir, database string
	startContract(t, func(c *server.Config) { dir, database = c.DataDir, c.DatabaseURL })
	b, err := os.ReadFile(settings.RunningFile(dir))
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(settings.RunningFile(dir)); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("its mode: %v, %v", st, err)
	}
	var r map[string]any
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	if _, ok := r["databaseUrl"]; ok || bytes.Contains(b, []byte(database)) || r["url"] == "" {
		t.Errorf("%s", b)
	}
	f := settings.Tool{Dir: settings.Dir{DataDir: dir}}
	var u settings.UsageError
	if err := f.ResolveDatabase(); !errors.As(err, &u) || !strings.Contains(err.Error(), "set DATABASE_URL for this command, too") {
		t.Errorf("a tool without DATABASE_URL: %v", err)
	}
	f = settings.Tool{Dir: settings.Dir{DataDir: dir}, Database: settings.Database{DatabaseURL: database}}
	if err := f.ResolveDatabase(); err != nil || len(f.Brokers) == 0 {
		t.Errorf("a tool with DATABASE_URL: %v, brokers %v", err, f.Brokers)
	}
}
