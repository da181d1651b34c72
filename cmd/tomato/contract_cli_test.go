package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// The command line, run as a process of its own: exit codes, and what goes
// where.
func TestContractCommandLine(t *testing.T) {
	t.Parallel()
	binary := filepath.Join(t.TempDir(), "tomato")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	dir := t.TempDir()
	all := []string{"TOMATO_JWT_SECRET=s3cret", "TOMATO_INTERNAL_KEY=k", "TOMATO_RAZORPAY_WEBHOOK_SECRETS=w"}
	for _, r := range []struct {
		env, args string
		code      int
		stdout    string // begins with; "" for nothing at all
		stderr    string // holds
	}{
		{"", "version", 0, "tomato ", ""},
		{"", "--help", 0, "Usage: tomato", ""},
		{"", "serve --help", 0, "Usage: tomato serve", ""},
		{"", "", 2, "", "expected one of"},
		{"", "fly", 2, "", "fly"},
		{"", "serve --nonsense", 2, "", "nonsense"},
		{"", "serve --role cook", 2, "", "cook"},
		{"", "serve --payment-ttl never", 2, "", "payment-ttl"},
		{"", "serve --payment-ttl 0s", 2, "", "must be more than 0"},
		{"", "serve --archive-after 1h", 2, "", "TOMATO_ARCHIVE_AFTER"},
		{"TOMATO_ARCHIVE_AFTER=1h", "serve", 2, "", "TOMATO_ARCHIVE_AFTER"},
		{"TOMATO_OFFER_RADII=9000,5000", "serve", 2, "", "TOMATO_OFFER_RADII"},
		{"TOMATO_OFFER_LIMIT=0", "serve", 2, "", "TOMATO_OFFER_LIMIT"},
		{"TOMATO_LOG_LEVEL=loud", "serve", 2, "", "log-level"},
		{"TOMATO_RAZORPAY_KEY_ID=k", "serve", 2, "", "TOMATO_RAZORPAY_KEY_SECRET"},
		{"KAFKA_BROKERS=127.0.0.1:1", "serve", 2, "", "TOMATO_JWT_SECRET"},
		{"DATABASE_URL=postgres://127.0.0.1:1/x", "serve", 2, "", "TOMATO_INTERNAL_KEY"},
		{"KAFKA_BROKERS=127.0.0.1:1 " + strings.Join(all[:2], " "), "serve", 2, "", "TOMATO_RAZORPAY_WEBHOOK_SECRETS"},
		{"", "token --role ops", 2, "", "sub"},
		{"", "token --role king --sub a", 2, "", "king"},
		{"", "token --role ops --sub a", 2, "", "tomato serve"},
		{all[0], "token --role restaurant --sub a", 2, "", "restaurant"},
		{all[0], "token --role rider --sub a/b", 2, "", "sub"},
		{all[0], "token --role rider --sub a --ttl 0s", 2, "", "ttl"},
		{all[0], "token --role ops --sub a --restaurant r1", 2, "", "restaurant"},
		{all[0] + " TOMATO_JWT_ISSUER=i TOMATO_JWT_AUDIENCE=d", "token --role restaurant --sub a --restaurant r1 --ttl 1h", 0, "ey", ""},
		{"", "rebuild nonsense", 2, "", "nonsense"},
		{"", "rebuild orders", 2, "", "tomato serve"},
		{"", "dlq list", 2, "", "tomato serve"},
		{"", "dlq show x", 2, "", "x"},
		{"", "topics describe", 2, "", "tomato serve"},
		{"", "migrate", 2, "", "tomato serve"},
		{"", "bench nonsense", 2, "", "nonsense"},
		{"DATABASE_URL=postgres://127.0.0.1:1/x?connect_timeout=2", "migrate", 1, "", "127.0.0.1"},
	} {
		t.Run(r.env+" "+r.args, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, binary, strings.Fields(r.args)...)
			cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TOMATO_DATA_DIR=" + filepath.Join(dir, "none")}, strings.Fields(r.env)...)
			cmd.Dir = t.TempDir()
			var stdout, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			err := cmd.Run()
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				t.Fatal(err)
			}
			if code := cmd.ProcessState.ExitCode(); code != r.code {
				t.Errorf("exit code %d, want %d: %s%s", code, r.code, stdout.Bytes(), stderr.Bytes())
			}
			if out := stdout.String(); r.code == 0 && !strings.HasPrefix(out, r.stdout) || r.code != 0 && out != "" {
				t.Errorf("stdout %q", out)
			}
			if !strings.Contains(stderr.String(), r.stderr) {
				t.Errorf("stderr lacks %s: %s", r.stderr, stderr.Bytes())
			}
			if token, is := strings.CutPrefix(r.args, "token "); is && r.code == 0 {
				claims := jwt.MapClaims{}
				_, err := jwt.ParseWithClaims(strings.TrimSuffix(stdout.String(), "\n"), claims, func(*jwt.Token) (any, error) { return []byte("s3cret"), nil },
					jwt.WithIssuer("i"), jwt.WithAudience("d"), jwt.WithExpirationRequired())
				if err != nil || claims["role"] != "restaurant" || claims["restaurantId"] != "r1" || claims["sub"] != "a" {
					t.Errorf("token %s: %v %v", token, err, claims)
				}
			}
		})
	}
}
