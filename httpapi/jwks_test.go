package httpapi

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/prometheus/client_golang/prometheus"

	"tomato/domain"
)

// identity is a provider of identities whose key set can be away.
type identity struct {
	*httptest.Server
	keys atomic.Pointer[map[string]*rsa.PrivateKey] // nil: the key set cannot be read
}

func newIdentity(t *testing.T) *identity {
	t.Helper()
	i := &identity{}
	i.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		keys := i.keys.Load()
		if keys == nil {
			http.Error(w, "away", http.StatusBadGateway)
			return
		}
		all := []any{map[string]any{"kty": "a kind that nobody knows", "kid": "u"}}
		for kid, k := range *keys {
			all = append(all, map[string]any{"kty": "RSA", "kid": kid, "alg": "RS256", "n": b64(k.N.Bytes()), "e": b64(big.NewInt(int64(k.E)).Bytes())})
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"keys": all})
	}))
	t.Cleanup(i.Close)
	return i
}

func rsaKey(t *testing.T) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func statusOf(err error) int {
	var p *Problem
	if err == nil {
		return 200
	}
	if errors.As(err, &p) {
		return p.Status
	}
	return 0
}

// While the key set cannot be read, tokens whose keys may be in it are answered with 503 and
// Retry-After, and not with 401, which would make every caller get a new token. Keys that
// were read before stay.
func TestAKeySetThatCannotBeReadIsNot401(t *testing.T) {
	t.Parallel()
	first, second := rsaKey(t), rsaKey(t)
	id := newIdentity(t)
	registry := prometheus.NewRegistry()
	a, err := NewAuthenticator(AuthConfig{Secrets: []string{secret}, JWKSURL: id.URL, Registry: registry, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	tokenOf := func(kid string, key *rsa.PrivateKey, sub string) string {
		return sign(t, jwt.SigningMethodRS256, kid, key, good("sub", sub))
	}
	_, err = a.Authenticate(tokenOf("1", first, "c1"))
	var p *Problem
	if !errors.As(err, &p) || p.Status != 503 || p.RetryAfter <= 0 {
		t.Fatalf("never read: %v", err)
	}
	if at, err := a.KeySetRead(); !at.IsZero() || err == nil {
		t.Errorf("never read: %v %v", at, err)
	}
	if _, err := a.Authenticate(sign(t, jwt.SigningMethodHS256, "", []byte(secret), good())); err != nil {
		t.Errorf("a token that needs no key set: %v", err)
	}
	if n := metric(t, registry, "tomato_jwks_failed_reads_total"); n < 1 {
		t.Errorf("%v failed reads", n)
	}
	if n := metric(t, registry, "tomato_jwks_read_timestamp_seconds"); n != 0 {
		t.Errorf("read at %v", n)
	}

	id.keys.Store(&map[string]*rsa.PrivateKey{"1": first})
	eventually(t, "the key set is read again", func() bool { _, err := a.Authenticate(tokenOf("1", first, "c1")); return err == nil })
	if at, err := a.KeySetRead(); time.Since(at) > time.Minute || err != nil {
		t.Errorf("read at %v, %v", at, err)
	}
	if n := metric(t, registry, "tomato_jwks_read_timestamp_seconds"); n == 0 {
		t.Error("not read, says the metric")
	}
	if status := statusOf(authenticate(a, tokenOf("2", second, "c1"))); status != 401 {
		t.Errorf("an unknown key of a key set that can be read: %d", status)
	}

	id.keys.Store(nil)
	a.jwks.read(t.Context(), keySetTimeout)
	if _, err := a.Authenticate(tokenOf("1", first, "c2")); err != nil {
		t.Errorf("a key that was read before: %v", err)
	}
	if status := statusOf(authenticate(a, tokenOf("2", second, "c1"))); status != 503 {
		t.Errorf("an unknown key while the key set cannot be read: %d", status)
	}
	if status := statusOf(authenticate(a, tokenOf("1", second, "c1"))); status != 401 {
		t.Errorf("a forged token while the key set cannot be read: %d", status)
	}
}

func authenticate(a *Authenticator, token string) error {
	_, err := a.Authenticate(token)
	return err
}

// A token that is signed with a new key is accepted at once, because the key set is read
// again for it, although it was read a moment ago.
func TestANewKeyIsFetched(t *testing.T) {
	t.Parallel()
	first, second := rsaKey(t), rsaKey(t)
	id := newIdentity(t)
	id.keys.Store(&map[string]*rsa.PrivateKey{"1": first})
	a, err := NewAuthenticator(AuthConfig{JWKSURL: id.URL, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	if _, err := a.Authenticate(sign(t, jwt.SigningMethodRS256, "1", first, good())); err != nil {
		t.Fatal(err)
	}
	id.keys.Store(&map[string]*rsa.PrivateKey{"1": first, "2": second})
	if _, err := a.Authenticate(sign(t, jwt.SigningMethodRS256, "2", second, good())); err != nil {
		t.Error(err)
	}
}

// Keys that come in plain text over a network could be anybody's.
func TestKeySetURLsThatAreNotSafe(t *testing.T) {
	t.Parallel()
	for address, good := range map[string]bool{
		"https://keys.example/jwks": true, "http://127.0.0.1:8080/jwks": true, "http://[::1]/jwks": true, "http://localhost:1/": true,
		"http://keys.example/jwks": false, "http://10.0.0.7/jwks": false, "http://0.0.0.0/jwks": false, "http://127.0.0.1.example/": false, "ftp://127.0.0.1/": false,
		"keys.example": false, "": false, "file:///etc/passwd": false, "https://": false,
	} {
		if err := CheckKeySetURL(address); (err == nil) != good {
			t.Errorf("%q: %v", address, err)
		}
	}
	if _, err := NewAuthenticator(AuthConfig{JWKSURL: "http://keys.example/jwks"}); err == nil || !strings.Contains(err.Error(), "https") {
		t.Errorf("plain http was taken: %v", err)
	}
	away := httptest.NewServer(http.RedirectHandler("http://keys.example/jwks", http.StatusFound))
	t.Cleanup(away.Close)
	a, err := NewAuthenticator(AuthConfig{JWKSURL: away.URL, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	if _, err := a.KeySetRead(); err == nil || !strings.Contains(err.Error(), "https") {
		t.Errorf("a redirect to plain http was followed: %v", err)
	}
}

// Each secret of the list verifies, and the first one signs.
func TestSecretsRotate(t *testing.T) {
	t.Parallel()
	config := AuthConfig{Secrets: []string{"the new secret", "the old secret"}}
	a, err := NewAuthenticator(config)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	for key, status := range map[string]int{"the new secret": 200, "the old secret": 200, "another secret": 401, "": 401} {
		if _, err := a.Authenticate(sign(t, jwt.SigningMethodHS256, "", []byte(key), good())); statusOf(err) != status {
			t.Errorf("%q: %v", key, err)
		}
	}
	minted, err := config.MintToken(domain.Actor{Sub: "c1", Role: domain.Customer}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	after, err := NewAuthenticator(AuthConfig{Secrets: []string{"the new secret"}})
	if err != nil {
		t.Fatal(err)
	}
	defer after.Close()
	if _, err := after.Authenticate(minted); err != nil {
		t.Errorf("a token was not signed with the first secret: %v", err)
	}
	if _, err := after.Authenticate(sign(t, jwt.SigningMethodHS256, "", []byte("the old secret"), good())); statusOf(err) != 401 {
		t.Errorf("a secret that was taken off the list: %v", err)
	}
}

// A token that is valid for longer than MaxTTL is refused, whenever it was issued.
func TestTokensMayNotBeValidForTooLong(t *testing.T) {
	t.Parallel()
	a, err := NewAuthenticator(AuthConfig{Secrets: []string{secret}, MaxTTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	for ttl, status := range map[time.Duration]int{time.Minute: 200, 59 * time.Minute: 200, 2 * time.Hour: 401, 1000 * time.Hour: 401} {
		token := sign(t, jwt.SigningMethodHS256, "", []byte(secret), good("exp", time.Now().Add(ttl).Unix(), "iat", time.Now().Add(-time.Hour).Unix()))
		if _, err := a.Authenticate(token); statusOf(err) != status {
			t.Errorf("%v: %v", ttl, err)
		}
	}
}

// revoked are revocations by subject.
type revoked map[string]time.Time

func (r revoked) RevokedUpTo(sub string) (time.Time, bool) { at, ok := r[sub]; return at, ok }

// A revoked token is refused although it is remembered. Tokens of the subject that were
// issued later are accepted, and so are those of others.
func TestRevokedTokensAreRefused(t *testing.T) {
	t.Parallel()
	revocations := revoked{}
	a, err := NewAuthenticator(AuthConfig{Secrets: []string{secret}, Revocations: revocations})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	now := time.Now().Truncate(time.Second)
	issued := func(sub string, iat any) string {
		return sign(t, jwt.SigningMethodHS256, "", []byte(secret), good("sub", sub, "iat", iat))
	}
	before, at, after := issued("c1", now.Add(-time.Minute).Unix()), issued("c1", now.Unix()), issued("c1", now.Add(time.Second).Unix())
	never, other := issued("c1", nil), issued("c2", now.Add(-time.Minute).Unix())
	check := func(when string, want map[string]int) {
		t.Helper()
		for token, status := range want {
			if _, err := a.Authenticate(token); statusOf(err) != status {
				t.Errorf("%s: %v, want %d", when, err, status)
			}
		}
	}
	check("before", map[string]int{before: 200, at: 200, after: 200, never: 200, other: 200})
	revocations["c1"] = now
	check("after", map[string]int{before: 401, at: 401, after: 200, never: 401, other: 200})
}

func metric(t *testing.T, registry *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetCounter().GetValue() + f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatal("no metric", name)
	return 0
}

// eventually waits until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(time.Minute); !ok(); {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("not in a minute: ", what)
		}
	}
}
