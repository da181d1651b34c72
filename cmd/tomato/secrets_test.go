package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// A secret that was chosen is taken from 32 bytes on; a webhook secret, which the
// merchant chooses, at any length but none.
func TestSecretsThatAreTooShort(t *testing.T) {
	t.Parallel()
	b31, b32 := strings.Repeat("a", 31), strings.Repeat("b", 32)
	for _, r := range []struct {
		name  string
		flags secretFlags
		fault string // "" for none
	}{
		{"nothing is set", secretFlags{}, ""},
		{"all are good", secretFlags{JWTSecret: b32, ClusterKey: b32 + "c", InternalKey: b32, WebhookSecrets: []string{"x", " y"}}, ""},
		{"JWT", secretFlags{JWTSecret: b31}, "TOMATO_JWT_SECRET"},
		{"JWT beside a JWKS URL", secretFlags{JWTSecret: b31, JWKSURL: "https://keys.example"}, "TOMATO_JWT_SECRET"},
		{"cluster", secretFlags{ClusterKey: b31}, "TOMATO_CLUSTER_KEY"},
		{"internal", secretFlags{InternalKey: "k"}, "TOMATO_INTERNAL_KEY"},
		{"cluster as internal", secretFlags{ClusterKey: b32, InternalKey: b32}, "TOMATO_CLUSTER_KEY"},
		{"cluster as JWT", secretFlags{ClusterKey: b32, JWTSecret: b32}, "TOMATO_CLUSTER_KEY"},
		{"an empty webhook secret", secretFlags{WebhookSecrets: []string{"x", ""}}, "TOMATO_RAZORPAY_WEBHOOK_SECRETS"},
		{"a blank webhook secret", secretFlags{WebhookSecrets: []string{" \t", "x"}}, "TOMATO_RAZORPAY_WEBHOOK_SECRETS"},
	} {
		err := r.flags.check()
		var u usageError
		switch {
		case r.fault == "" && err != nil:
			t.Errorf("%s: %v", r.name, err)
		case r.fault != "" && (!errors.As(err, &u) || !strings.HasPrefix(err.Error(), r.fault)):
			t.Errorf("%s: %v, want a usage error that begins with %s", r.name, err, r.fault)
		case err != nil && (strings.Contains(err.Error(), b31) || strings.Contains(err.Error(), b32)):
			t.Errorf("%s: the error shows the secret: %v", r.name, err)
		}
	}
}

// Each secret that is not chosen is made up, once for all processes with the data
// directory; a file that an older build wrote keeps what it has and gets the rest.
func TestMadeUpSecretsAreKept(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	old := `{"jwtSecret":"` + strings.Repeat("j", 64) + `","internalKey":"` + strings.Repeat("i", 64) + `","webhookSecret":"w"}`
	if err := os.WriteFile(secretsFile(dir), []byte(old), 0o644); err != nil {
		t.Fatal(err)
	}
	keys := make([]string, 64)
	start := make(chan struct{})
	var all sync.WaitGroup
	for i := range keys {
		all.Go(func() {
			var f secretFlags
			<-start
			made, err := f.develop(dir, true)
			if err != nil || !made.any || !made.jwt {
				t.Errorf("made up %+v: %v", made, err)
			}
			if f.JWTSecret != strings.Repeat("j", 64) || f.InternalKey != strings.Repeat("i", 64) || f.WebhookSecrets[0] != "w" {
				t.Errorf("the older secrets became %+v", f)
			}
			keys[i] = f.ClusterKey
		})
	}
	close(start)
	all.Wait()
	for _, k := range keys {
		if len(k) < minSecretBytes || k != keys[0] {
			t.Errorf("cluster keys %v", keys)
		}
	}
	if kept, err := readSecrets(dir); err != nil || kept.ClusterKey != keys[0] {
		t.Errorf("kept is %+v: %v", kept, err)
	}
	mode(t, secretsFile(dir))
	if names, _ := filepath.Glob(filepath.Join(dir, "*")); len(names) != 1 {
		t.Errorf("left are %v", names)
	}
}

// mode fails unless only its owner may read the file.
func mode(t *testing.T, path string) {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if st.Mode().Perm() != 0o600 {
		t.Errorf("%s has mode %o", path, st.Mode().Perm())
	}
}

// A token is printed only where nobody chose the secret that signs it, whatever
// else is made up: with --dev a chosen secret is that of a real installation.
func TestTokensArePrintedWithAMadeUpSecretAlone(t *testing.T) {
	t.Parallel()
	chosen := strings.Repeat("x", 40)
	for _, r := range []struct {
		flags secretFlags
		shown bool
	}{
		{secretFlags{}, true},
		{secretFlags{InternalKey: chosen}, true},
		{secretFlags{JWTSecret: chosen}, false},
		{secretFlags{JWKSURL: "https://keys.example"}, false},
		{secretFlags{JWTSecret: chosen, ClusterKey: chosen + "c", InternalKey: chosen, WebhookSecrets: []string{"w"}}, false},
	} {
		s := &server{cmd: serveCmd{secretFlags: r.flags}, url: "http://127.0.0.1:1"}
		var err error
		if s.made, err = s.cmd.develop(t.TempDir(), true); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		s.greet(&out)
		if got := strings.Contains(out.String(), "eyJ"); got != r.shown {
			t.Errorf("%+v: tokens are shown: %v, want %v", r.flags, got, r.shown)
		}
	}
}

// What serve writes down for the tools beside it holds nothing that was
// configured with a password, and is its owner's alone. The tools say what they
// lack.
func TestRunningHoldsNoConfiguredPassword(t *testing.T) {
	t.Parallel()
	var dir, database string
	startContract(t, func(c *serveCmd) { dir, database = c.DataDir, c.DatabaseURL })
	b, err := os.ReadFile(runningFile(dir))
	if err != nil {
		t.Fatal(err)
	}
	mode(t, runningFile(dir))
	var r map[string]any
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	if _, ok := r["databaseUrl"]; ok || bytes.Contains(b, []byte(database)) || r["url"] == "" {
		t.Errorf("%s", b)
	}
	f := toolFlags{dirFlags: dirFlags{DataDir: dir}}
	var u usageError
	if err := f.resolveDatabase(); !errors.As(err, &u) || !strings.Contains(err.Error(), "set DATABASE_URL for this command, too") {
		t.Errorf("a tool without DATABASE_URL: %v", err)
	}
	f = toolFlags{dirFlags: dirFlags{DataDir: dir}, databaseFlags: databaseFlags{DatabaseURL: database}}
	if err := f.resolveDatabase(); err != nil || len(f.Brokers) == 0 {
		t.Errorf("a tool with DATABASE_URL: %v, brokers %v", err, f.Brokers)
	}
}
