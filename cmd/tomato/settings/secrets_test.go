package settings

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// A chosen secret must have at least 32 bytes. A webhook secret, which the merchant
// chooses, may have any length but 0.
func TestSecretsThatAreTooShort(t *testing.T) {
	t.Parallel()
	b31, b32 := strings.Repeat("a", 31), strings.Repeat("b", 32)
	for _, r := range []struct {
		name  string
		flags Secrets
		fault string // "" for none
	}{
		{"nothing is set", Secrets{}, ""},
		{"all are good", Secrets{JWTSecret: b32, ClusterKey: b32 + "c", InternalKey: b32, WebhookSecrets: []string{"x", " y"}}, ""},
		{"JWT", Secrets{JWTSecret: b31}, "TOMATO_JWT_SECRET"},
		{"JWT beside a JWKS URL", Secrets{JWTSecret: b31, JWKSURL: "https://keys.example"}, "TOMATO_JWT_SECRET"},
		{"cluster", Secrets{ClusterKey: b31}, "TOMATO_CLUSTER_KEY"},
		{"internal", Secrets{InternalKey: "k"}, "TOMATO_INTERNAL_KEY"},
		{"cluster as internal", Secrets{ClusterKey: b32, InternalKey: b32}, "TOMATO_CLUSTER_KEY"},
		{"cluster as JWT", Secrets{ClusterKey: b32, JWTSecret: b32}, "TOMATO_CLUSTER_KEY"},
		{"lists", Secrets{JWTSecrets: []string{b32, " " + b32 + "2"}, ClusterKeys: []string{b32 + "c", b32 + "d"}, InternalKeys: []string{b32 + "i"}}, ""},
		{"an empty variable", Secrets{JWTSecrets: []string{""}, ClusterKeys: []string{" "}}, ""},
		{"a short one in a list", Secrets{JWTSecrets: []string{b32, b31}}, "TOMATO_JWT_SECRETS: secret 2 of 2"},
		{"a blank one in a list", Secrets{InternalKeys: []string{b32, " "}}, "TOMATO_INTERNAL_KEYS: secret 2 of 2"},
		{"a list and a single one", Secrets{ClusterKey: b32, ClusterKeys: []string{b32}}, "TOMATO_CLUSTER_KEY and TOMATO_CLUSTER_KEYS"},
		{"an older cluster key as internal", Secrets{ClusterKeys: []string{b32 + "c", b32}, InternalKey: b32}, "TOMATO_CLUSTER_KEY"},
		{"keys by http", Secrets{JWKSURL: "http://keys.example/jwks"}, "TOMATO_JWKS_URL"},
		{"keys of this machine", Secrets{JWKSURL: "http://127.0.0.1:1/jwks"}, ""},
		{"an empty webhook secret", Secrets{WebhookSecrets: []string{"x", ""}}, "TOMATO_RAZORPAY_WEBHOOK_SECRETS"},
		{"a blank webhook secret", Secrets{WebhookSecrets: []string{" \t", "x"}}, "TOMATO_RAZORPAY_WEBHOOK_SECRETS"},
	} {
		err := r.flags.Check()
		var u UsageError
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

// Each secret that is not chosen is made up once for all processes that share the data
// directory. A file that an older build wrote keeps its secrets and gets the missing
// ones.
func TestMadeUpSecretsAreKept(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	old := `{"jwtSecret":"` + strings.Repeat("j", 64) + `","internalKey":"` + strings.Repeat("i", 64) + `","webhookSecret":"w"}`
	if err := os.WriteFile(SecretsFile(dir), []byte(old), 0o644); err != nil {
		t.Fatal(err)
	}
	keys := make([]string, 64)
	start := make(chan struct{})
	var all sync.WaitGroup
	for i := range keys {
		all.Go(func() {
			var f Secrets
			<-start
			made, err := f.Develop(dir, true)
			if err != nil || !made.Any || !made.JWT {
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
	mode(t, SecretsFile(dir))
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
