package settings

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"tomato/httpapi"
)

// Secrets has the secrets that every instance shares. A secret that can be changed without
// an outage is a list: the first one signs, and all of them verify. The same secret may be
// set by its single name instead, and then may have commas in it. A flag with the tag
// secret can be read from a file (files.go), and is hidden from ps (hide.go).
type Secrets struct {
	JWTSecret      string   `env:"TOMATO_JWT_SECRET" secret:"" help:"HS256 secret of the tokens, at least 32 bytes."`
	JWTSecrets     []string `name:"jwt-secrets" env:"TOMATO_JWT_SECRETS" secret:"" help:"The same as a list, to change it: newest first. All of them verify tokens."`
	JWKSURL        string   `name:"jwks-url" env:"TOMATO_JWKS_URL" help:"Keys of RS256 or ES256 tokens, instead of a secret. https, or an address of this machine."`
	ClusterKey     string   `env:"TOMATO_CLUSTER_KEY" secret:"" help:"Signs the calls between instances, at least 32 bytes. For instances alone."`
	ClusterKeys    []string `name:"cluster-keys" env:"TOMATO_CLUSTER_KEYS" secret:"" help:"The same as a list, to change it: the first one signs, and all of them verify."`
	MasterKeys     []string `name:"master-key" env:"TOMATO_MASTER_KEY" secret:"" help:"Wraps the keys of customers and riders, at least 32 bytes in hex or base64. A list, newest first; the others still unwrap. The word derived stands for the key that is derived from TOMATO_CLUSTER_KEY, which is used if none is set."`
	InternalKey    string   `env:"TOMATO_INTERNAL_KEY" secret:"" help:"Of POST /api/v1/internal/emit, at least 32 bytes. For services that push messages into rooms."`
	InternalKeys   []string `name:"internal-keys" env:"TOMATO_INTERNAL_KEYS" secret:"" help:"The same as a list, to change it: each of them opens emit."`
	WebhookSecrets []string `name:"razorpay-webhook-secrets" env:"TOMATO_RAZORPAY_WEBHOOK_SECRETS" secret:"" help:"Newest first; older ones stay valid while the gateway retries."`
}

// JWT returns the secrets of tokens. The first one signs, and all of them verify. It is empty
// if none is set.
func (f *Secrets) JWT() []string { return oneOrList(f.JWTSecret, f.JWTSecrets) }

// Cluster returns the keys of calls between instances, in the same way.
func (f *Secrets) Cluster() []string { return oneOrList(f.ClusterKey, f.ClusterKeys) }

// Internal returns the keys of internal/emit, in the same way.
func (f *Secrets) Internal() []string { return oneOrList(f.InternalKey, f.InternalKeys) }

// oneOrList returns the secret of a single name, or else those of the list without white
// space around them. An empty variable sets nothing.
func oneOrList(one string, list []string) []string {
	if one != "" {
		return []string{one}
	}
	if len(list) == 1 && strings.TrimSpace(list[0]) == "" {
		return nil
	}
	trimmed := make([]string, len(list))
	for i, s := range list {
		trimmed[i] = strings.TrimSpace(s)
	}
	return trimmed
}

// minSecretBytes is the minimum length of a secret that signs. It is the length of the
// output of SHA-256, which RFC 7518 requires for HS256.
const minSecretBytes = 32

// checkSecret returns a UsageError if the secret is too short. The error does not quote
// the secret.
func checkSecret(name, secret string) error {
	if len(secret) < minSecretBytes {
		return Usage("%s has %d bytes: at least %d are needed. Make one with `openssl rand -hex 32`", name, len(secret), minSecretBytes)
	}
	return nil
}

// Check returns a UsageError if a secret that is set is not good enough. It ignores
// secrets that are not set.
func (f *Secrets) Check() error {
	for _, s := range []struct {
		name string
		one  string
		list []string
	}{
		{"TOMATO_JWT_SECRET", f.JWTSecret, f.JWTSecrets}, {"TOMATO_CLUSTER_KEY", f.ClusterKey, f.ClusterKeys}, {"TOMATO_INTERNAL_KEY", f.InternalKey, f.InternalKeys},
	} {
		if err := checkList(s.name, s.one, s.list); err != nil {
			return err
		}
	}
	// Somebody who knows one of the other two secrets must not be able to act as an
	// instance.
	for _, key := range f.Cluster() {
		if slices.Contains(f.Internal(), key) || slices.Contains(f.JWT(), key) {
			return Usage("TOMATO_CLUSTER_KEY must differ from TOMATO_INTERNAL_KEY and TOMATO_JWT_SECRET: it is for the instances alone. Make one with `openssl rand -hex 32`")
		}
	}
	if f.JWKSURL != "" {
		if err := httpapi.CheckKeySetURL(f.JWKSURL); err != nil {
			return Usage("TOMATO_JWKS_URL: %v", err)
		}
	}
	if _, err := f.Masters(); err != nil {
		return err
	}
	for i, s := range f.WebhookSecrets {
		if strings.TrimSpace(s) == "" {
			return Usage("TOMATO_RAZORPAY_WEBHOOK_SECRETS: secret %d of %d is empty, and anybody could sign with it. Separate the secrets with single commas", i+1, len(f.WebhookSecrets))
		}
	}
	return nil
}

// checkList checks a secret that is set by its single name or as a list, whose name has an s
// behind it. The error is a UsageError that quotes no secret.
func checkList(name, one string, list []string) error {
	all := oneOrList(one, list)
	switch {
	case one == "" && len(all) == 0:
		return nil
	case one != "" && len(oneOrList("", list)) > 0:
		return Usage("%s and %sS are both set: put the secret into the list, and unset %s", name, name, name)
	case one != "":
		return checkSecret(name, one)
	}
	for i, s := range all {
		if err := checkSecret(fmt.Sprintf("%sS: secret %d of %d", name, i+1, len(all)), s); err != nil {
			return err
		}
	}
	return nil
}

// secrets are development secrets as they are kept in the data directory.
type secrets struct {
	JWTSecret     string `json:"jwtSecret"`
	ClusterKey    string `json:"clusterKey"`
	MasterKey     string `json:"masterKey"`
	InternalKey   string `json:"internalKey"`
	WebhookSecret string `json:"webhookSecret"`
}

// SecretsFile returns the path of the development secrets in a data directory.
func SecretsFile(dir string) string { return filepath.Join(dir, "secrets.json") }

func readSecrets(dir string) (s secrets, err error) {
	b, err := os.ReadFile(SecretsFile(dir))
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return s, fmt.Errorf("%s is not what `tomato serve` wrote: delete it to get new secrets", SecretsFile(dir)) // without err, which may quote a secret
	}
	return s, nil
}

// makeSecrets returns the development secrets in dir. It makes those that are missing
// and keeps them. The first time these are all secrets; later they are the ones that a
// newer build has added. Processes that share dir get the same secrets.
func makeSecrets(dir string) (s secrets, err error) {
	lock, err := os.Open(dir)
	if err != nil {
		return s, err
	}
	defer lock.Close() // releases the lock
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return s, err
	}
	if s, err = readSecrets(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return s, err
	}
	before := s
	for _, secret := range []*string{&s.JWTSecret, &s.ClusterKey, &s.MasterKey, &s.InternalKey, &s.WebhookSecret} {
		if *secret == "" {
			*secret = random()
		}
	}
	if s == before {
		return s, nil
	}
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return s, err
	}
	return s, writeFile(SecretsFile(dir), b)
}

// MadeUp says which secrets were made up because nobody chose them.
type MadeUp struct {
	Any bool // at least one was made up
	JWT bool // the secret that signs tokens was made up, so tokens may be printed
}

// Develop sets missing secrets to development secrets, which are made once and kept in
// dir. It returns a UsageError if a secret is missing and allowed is false. allowed
// must be false for a real installation, because development secrets do not belong
// there.
func (f *Secrets) Develop(dir string, allowed bool) (made MadeUp, err error) {
	jwt := len(f.JWT()) > 0 || f.JWKSURL != ""
	var missing []string
	for _, s := range []struct {
		name string
		set  bool
	}{
		{"TOMATO_JWT_SECRET (or TOMATO_JWKS_URL)", jwt}, {"TOMATO_CLUSTER_KEY", len(f.Cluster()) > 0},
		{"TOMATO_INTERNAL_KEY", len(f.Internal()) > 0}, {"TOMATO_RAZORPAY_WEBHOOK_SECRETS", len(f.WebhookSecrets) > 0},
	} {
		if !s.set {
			missing = append(missing, s.name)
		}
	}
	if len(missing) == 0 {
		return MadeUp{}, nil
	}
	if !allowed {
		return MadeUp{}, Usage("KAFKA_BROKERS or DATABASE_URL is set, so secrets are not made up: set %s, each the same on every instance (`openssl rand -hex 32` makes one), or pass --dev", strings.Join(missing, ", "))
	}
	s, err := makeSecrets(dir)
	if err != nil {
		return MadeUp{}, fmt.Errorf("development secrets: %w", err)
	}
	if !jwt {
		f.JWTSecret = s.JWTSecret
	}
	if len(f.Cluster()) == 0 {
		f.ClusterKey = s.ClusterKey
		if !f.HasMaster() { // with a chosen cluster key, other instances derive theirs from it
			f.MasterKeys = []string{s.MasterKey}
		}
	}
	if len(f.Internal()) == 0 {
		f.InternalKey = s.InternalKey
	}
	if len(f.WebhookSecrets) == 0 {
		f.WebhookSecrets = []string{s.WebhookSecret}
	}
	if err := f.Check(); err != nil {
		return MadeUp{}, fmt.Errorf("%w (a secret that is not set comes from %s)", err, SecretsFile(dir))
	}
	return MadeUp{Any: true, JWT: !jwt}, nil
}

// Signing has the flags of the tools that make tokens.
type Signing struct {
	JWTSecret  string   `env:"TOMATO_JWT_SECRET" secret:"" help:"Unset: the development secret in the data directory."`
	JWTSecrets []string `name:"jwt-secrets" env:"TOMATO_JWT_SECRETS" secret:"" help:"The same as a list. The first one signs."`
	Issuer     string   `env:"TOMATO_JWT_ISSUER" help:"iss of the tokens."`
	Audience   string   `env:"TOMATO_JWT_AUDIENCE" help:"aud of the tokens."`
}

// Secret returns the secret that signs tokens. It is the chosen one. If none was chosen, it
// is the development secret in dir.
func (f *Signing) Secret(dir string) (string, error) {
	if chosen := oneOrList(f.JWTSecret, f.JWTSecrets); len(chosen) > 0 {
		return chosen[0], checkList("TOMATO_JWT_SECRET", f.JWTSecret, f.JWTSecrets)
	}
	s, err := readSecrets(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return "", Usage("no development secret in %s: run `tomato serve` once, or set TOMATO_JWT_SECRET", dir)
	}
	if err != nil {
		return "", err
	}
	return s.JWTSecret, checkSecret("jwtSecret in "+SecretsFile(dir), s.JWTSecret)
}

func random() string {
	b := make([]byte, minSecretBytes)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	return hex.EncodeToString(b)
}
