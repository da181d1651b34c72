package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alecthomas/kong"
	"github.com/golang-jwt/jwt/v5"

	"tomato/cmd/tomato/server"
	"tomato/cmd/tomato/servertest"
	"tomato/cmd/tomato/settings"
	"tomato/domain"
	"tomato/eventlog/eventlogtest"
	"tomato/feedclient"
	"tomato/httpapi"
)

const (
	newJWTSecret   = "the next JWT secret of the tests"
	oldClusterKey  = "the cluster key before the change"
	newClusterKey  = "the next cluster key of the tests"
	newInternalKey = "the next internal key of the tests"
)

// bearer returns the header of a token that is signed with this secret.
func bearer(t *testing.T, secret string, who domain.Actor) []string {
	t.Helper()
	token, err := httpapi.MintToken(secret, who, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return []string{"Authorization", "Bearer " + token}
}

// want sends a request, and fails unless the answer has the status.
func want(t *testing.T, a *servertest.Installation, status int, who domain.Actor, call string, body any, header ...string) servertest.Answer {
	t.Helper()
	x := a.Do(who, call, body, header...)
	if x.Err != nil || x.Status != status {
		t.Errorf("%d wanted: %v", status, x.Fault())
	}
	return x
}

// beside returns another installation on the same broker and database.
func beside(t *testing.T, a *servertest.Installation) *servertest.Installation {
	t.Helper()
	return servertest.NewOn(t, a.Kafka, a.Config.DatabaseURL)
}

// Every secret is changed while requests are served. In between, instances have both, and
// tokens, emit keys, feed cursors, consistency tokens and sealed addresses from before the
// change are good. Afterwards the old secrets are worth nothing.
func TestSecretsRotateWithoutAnOutage(t *testing.T) {
	t.Parallel()
	a := servertest.New(t, eventlogtest.Embedded(t))
	a.Config.ClusterKey = oldClusterKey
	a.Start()
	ops, customer := servertest.Ops, servertest.Customer("c1")
	a.AddRestaurant("r1", servertest.Lng, servertest.Lat)
	feed := a.Feed(customer)
	placed := a.Must(customer, "POST /v1/orders", servertest.Basket("r1"))
	order := placed.Str("orderId")
	cursor := feed.Expect("order:update", servertest.About(order)).Cursor
	emit := map[string]any{"event": "a:b", "room": "ops", "payload": 1}
	address := func(header ...string) {
		t.Helper()
		x := want(t, a, 200, domain.Actor{}, "GET /v1/orders/"+order, nil, append(header, "Consistency-Token", placed.Token())...)
		if x.Str("deliverTo.address") != "12 Market Road" {
			t.Errorf("the address is %v", x.Get("deliverTo"))
		}
	}
	feed.Close()
	a.Stop()

	// All instances have both secrets; one signs with the old ones, the other with the new.
	both := func(c *server.Config, first, second settings.Secrets) {
		c.JWTSecret, c.ClusterKey, c.InternalKey = "", "", ""
		c.JWTSecrets = []string{first.JWTSecret, second.JWTSecret}
		c.ClusterKeys = []string{first.ClusterKey, second.ClusterKey}
		c.InternalKeys = []string{first.InternalKey, second.InternalKey}
	}
	old := settings.Secrets{JWTSecret: servertest.JWTSecret, ClusterKey: oldClusterKey, InternalKey: servertest.InternalKey}
	next := settings.Secrets{JWTSecret: newJWTSecret, ClusterKey: newClusterKey, InternalKey: newInternalKey}
	both(&a.Config, next, old)
	b := beside(t, a)
	both(&b.Config, old, next)
	a.Start()
	b.Start()
	for _, i := range []*servertest.Installation{a, b} {
		for _, secret := range []string{servertest.JWTSecret, newJWTSecret} {
			want(t, i, 200, domain.Actor{}, "GET /v1/orders", nil, bearer(t, secret, ops)...)
			for range 6 { // on several shards, of which the other instance has some
				want(t, i, 201, domain.Actor{}, "POST /v1/orders", servertest.Basket("r1"), bearer(t, secret, customer)...)
			}
		}
		want(t, i, 401, domain.Actor{}, "GET /v1/orders", nil, bearer(t, "a third secret of 32 bytes or more, or", ops)...)
		for _, key := range []string{servertest.InternalKey, newInternalKey} {
			want(t, i, 202, domain.Actor{}, "POST /api/v1/internal/emit", emit, "x-internal-key", key)
		}
		want(t, i, 401, domain.Actor{}, "POST /api/v1/internal/emit", emit, "x-internal-key", oldClusterKey)
		resumed := i.FeedFrom(customer, cursor)
		if m := resumed.Next(); m.Event != "feed:resumed" {
			t.Errorf("a cursor from before the change: %s", m.Event)
		}
		resumed.Close()
	}
	address(bearer(t, newJWTSecret, ops)...)
	rewrapped := a.Tool("keys", "rewrap", "--yes", "--cluster-key=", "--cluster-keys", newClusterKey+","+oldClusterKey)
	if !strings.Contains(rewrapped, "are wrapped under the master key") {
		t.Errorf("rewrap: %s", rewrapped)
	}
	b.Stop()
	a.Stop()

	// Only the new ones are left.
	a.Config.JWTSecrets, a.Config.ClusterKeys, a.Config.InternalKeys = []string{newJWTSecret}, []string{newClusterKey}, []string{newInternalKey}
	a.Start()
	want(t, a, 401, domain.Actor{}, "GET /v1/orders", nil, bearer(t, servertest.JWTSecret, ops)...)
	want(t, a, 401, domain.Actor{}, "POST /api/v1/internal/emit", emit, "x-internal-key", servertest.InternalKey)
	want(t, a, 202, domain.Actor{}, "POST /api/v1/internal/emit", emit, "x-internal-key", newInternalKey)
	address(bearer(t, newJWTSecret, ops)...)
	reset := servertest.OpenFeed(t, a.URL, "?cursor="+cursor, servertest.WithToken(strings.TrimPrefix(bearer(t, newJWTSecret, customer)[1], "Bearer ")))
	if m := reset.Next(); m.Event != "feed:reset" {
		t.Errorf("a cursor of a key that was taken off the list: %s", m.Event)
	}
}

// A revocation is kept, and reaches every instance within seconds: requests are 401 and feeds
// are ended. Tokens that are issued later are good.
func TestRevokedTokensAreRefusedOnEveryInstance(t *testing.T) {
	t.Parallel()
	a := servertest.New(t, eventlogtest.Embedded(t)).Start()
	b := beside(t, a).Start()
	who, other := servertest.Customer("c1"), servertest.Customer("c2")
	issued := func(at time.Time) []string {
		token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{"sub": who.Sub, "role": string(who.Role), "iat": at.Unix(), "exp": at.Add(time.Hour).Unix()}).SignedString([]byte(servertest.JWTSecret))
		if err != nil {
			t.Fatal(err)
		}
		return []string{"Authorization", "Bearer " + token}
	}
	before := issued(time.Now().Add(-time.Minute))
	feeds := []*servertest.FeedClient{a.Feed(who), b.Feed(who)}
	others := []*servertest.FeedClient{a.Feed(other), b.Feed(other)}
	want(t, a, 200, domain.Actor{}, "GET /v1/orders", nil, before...)
	want(t, b, 200, domain.Actor{}, "GET /v1/orders", nil, before...)

	x := a.Must(servertest.Ops, "POST /v1/ops/revocations", map[string]any{"sub": who.Sub, "reason": "a lost phone"})
	at, err := time.Parse(time.RFC3339, x.Str("revokedAt"))
	if err != nil || x.Str("by") != "ops:ops1" {
		t.Fatalf("%s: %v", x.Body, err)
	}
	want(t, a, 401, domain.Actor{}, "GET /v1/orders", nil, before...) // at once where it was made
	refusedBy := func(i *servertest.Installation, header []string) {
		t.Helper()
		i.Await("the token is refused", func() error {
			if x := i.Do(domain.Actor{}, "GET /v1/orders", nil, header...); x.Status != 401 {
				return x.Fault()
			}
			return nil
		})
	}
	refusedBy(b, before)
	for _, f := range feeds {
		var closed *feedclient.ClosedError
		if err := f.Ended(); !errors.As(err, &closed) || closed.Code != 4500 || !strings.Contains(closed.Reason, "revoked") {
			t.Errorf("the feed ended with %v", err)
		}
	}
	later := issued(at.Add(time.Second))
	for _, i := range []*servertest.Installation{a, b} {
		want(t, i, 200, domain.Actor{}, "GET /v1/orders", nil, later...)
		want(t, i, 200, other, "GET /v1/orders", nil)
		want(t, i, 401, domain.Actor{}, "GET /v1/feed/sse", nil, before...)
	}
	for _, f := range others {
		f.Send(`{"op":"dance"}`)
		f.Expect("feed:error", func(servertest.Message) bool { return true })
	}
	b.Stop()
	b.Start()
	want(t, b, 401, domain.Actor{}, "GET /v1/orders", nil, before...)

	stale := []string{"Authorization", "Bearer " + servertest.Token(t, other)}
	said := a.Tool("tokens", "revoke", "--sub", other.Sub, "--json")
	var made struct{ Sub, By string }
	if err := json.Unmarshal([]byte(said), &made); err != nil || made.Sub != other.Sub || !strings.HasPrefix(made.By, "cli:") {
		t.Errorf("%s: %v", said, err)
	}
	for _, i := range []*servertest.Installation{a, b} {
		refusedBy(i, stale)
	}
	a.ToolRefused("", "tokens", "revoke", "--sub", "a b")
}

// Nobody on the machine can read a secret of a running serve: not among the arguments (ps),
// even if it was given there, not in what it logs, and not in the files that it writes.
func TestNoSecretIsShown(t *testing.T) {
	t.Parallel()
	a := servertest.New(t, eventlogtest.Embedded(t))
	flags := map[string]string{"jwt-secret": "", "cluster-key": "", "internal-key": "", "razorpay-webhook-secrets": "", "razorpay-key-secret": ""}
	args := []string{"--log-level", "debug", "--razorpay-key-id", "rzp_test_1"}
	for name := range flags {
		flags[name] = fmt.Sprintf("hunter2 %s 0123456789abcdef0123456789", name)
		args = append(args, "--"+name, flags[name])
	}
	flags["master-key"] = strings.Repeat("c0ffee42", 8)
	args = append(args, "--master-key="+flags["master-key"])
	if u, err := url.Parse(a.Config.DatabaseURL); err != nil {
		t.Fatal(err)
	} else if password, has := u.User.Password(); has {
		flags["database-url"] = password
	}
	serve := a.SpawnServer(args...)
	want(t, a, 200, domain.Actor{}, "GET /v1/orders", nil, bearer(t, flags["jwt-secret"], servertest.Ops)...)
	want(t, a, 401, servertest.Ops, "GET /v1/orders", nil)
	want(t, a, 202, domain.Actor{}, "POST /api/v1/internal/emit", map[string]any{"event": "a:b", "room": "ops", "payload": 1}, "x-internal-key", flags["internal-key"])
	want(t, a, 401, domain.Actor{}, "POST /api/v1/internal/emit", map[string]any{}, "x-internal-key", flags["cluster-key"])
	shown := map[string][]byte{"what it printed": []byte(serve.Output())}
	commands, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range commands {
		if b, err := os.ReadFile(path); err == nil { // others may have ended
			shown[path] = b
		}
	}
	if b := shown[fmt.Sprintf("/proc/%d/cmdline", serve.Cmd.Process.Pid)]; !bytes.Contains(b, []byte("rzp_test_1")) {
		t.Skipf("the arguments of processes cannot be read here: %q", b)
	}
	err = filepath.WalkDir(a.Config.DataDir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			shown[path], err = os.ReadFile(path)
		}
		return err
	})
	if err != nil || shown[settings.RunningFile(a.Config.DataDir)] == nil {
		t.Fatal(err)
	}
	for where, text := range shown {
		for name, secret := range flags {
			if bytes.Contains(text, []byte(secret)) {
				t.Errorf("%s shows the secret of --%s", where, name)
			}
		}
	}
}

// While the keys of tokens were never read, the instance is not ready, and its answers are
// 503 and not 401.
func TestAnInstanceWithoutTheKeysOfTokensIsNotReady(t *testing.T) {
	t.Parallel()
	var there atomic.Bool
	keys := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if !there.Load() {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		_, _ = w.Write([]byte(`{"keys":[]}`))
	}))
	t.Cleanup(keys.Close)
	a := servertest.New(t, eventlogtest.Embedded(t))
	a.Config.JWKSURL = keys.URL
	s, err := server.Start(t.Context(), a.Config, a.Options)
	if err != nil {
		t.Fatal(err)
	}
	a.Server, a.URL = s, s.URL()
	t.Cleanup(a.Stop)
	a.Await("everything else is ready", func() error {
		x := a.Do(domain.Actor{}, "GET /readyz", nil)
		reasons, _ := x.Get("reasons").(map[string]any)
		if x.Status != 503 || reasons["token-keys"] == nil || len(reasons) != 2 {
			return x.Fault()
		}
		return nil
	})
	token := "eyJhbGciOiJSUzI1NiIsImtpZCI6IjEifQ.eyJzdWIiOiJjMSJ9.AAAA" // RS256, with kid 1
	x := want(t, a, 503, domain.Actor{}, "GET /v1/orders", nil, "Authorization", "Bearer "+token)
	if x.Header.Get("Retry-After") == "" {
		t.Errorf("no Retry-After: %v", x.Header)
	}
	want(t, a, 503, domain.Actor{}, "GET /v1/feed/sse?token="+token, nil)
	want(t, a, 200, servertest.Ops, "GET /v1/orders", nil) // needs no key set
	if n := a.Metric("tomato_jwks_failed_reads_total"); n < 1 {
		t.Errorf("%v failed reads", n)
	}
	there.Store(true)
	a.AwaitReady()
	want(t, a, 401, domain.Actor{}, "GET /v1/orders", nil, "Authorization", "Bearer "+token)

	a.Config.JWKSURL = "http://keys.example/jwks"
	var usage settings.UsageError
	if _, err := server.Start(t.Context(), a.Config, a.Options); !errors.As(err, &usage) || !strings.Contains(err.Error(), "https") {
		t.Errorf("keys by http: %v", err)
	}
}

// secretVariables returns the variables of the flags that are marked as secret.
func secretVariables(t *testing.T) map[string]bool {
	t.Helper()
	all := map[string]bool{}
	eachFlag(t, func(f *kong.Flag) {
		if f.Tag.Has("secret") {
			all[f.Envs[0]] = true
		}
	})
	return all
}

func eachFlag(t *testing.T, do func(*kong.Flag)) {
	t.Helper()
	var walk func(*kong.Node)
	walk = func(n *kong.Node) {
		for _, f := range n.Flags {
			do(f)
		}
		for _, c := range n.Children {
			walk(c)
		}
	}
	walk(newParser(t).Model.Node)
}

// A flag whose value is secret is marked, so that it can be read from a file and is hidden
// from ps. docs/operations.md marks its variable, too.
func TestEverySecretIsMarked(t *testing.T) {
	t.Parallel()
	secret := regexp.MustCompile(`secret|password|database-url|(master|cluster|internal)-keys?$`)
	operations := read(t, "docs/operations.md")
	eachFlag(t, func(f *kong.Flag) {
		if marked := f.Tag.Has("secret"); marked != secret.MatchString(f.Name) {
			t.Errorf("--%s is marked as secret: %v", f.Name, marked)
		} else if marked && (len(f.Envs) != 1 || !regexp.MustCompile("(?m)^\\| .*`"+f.Envs[0]+"`.*\\*secret\\*").MatchString(operations)) {
			t.Errorf("docs/operations.md does not mark %v as secret", f.Envs)
		}
	})
}
