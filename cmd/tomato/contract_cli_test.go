package main_test

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

const contractSecretWord = "one_word_for_the_command_line_32" // 32 bytes: the least

// The command line, run as a process of its own: exit codes, and what goes
// where.
func TestContractCommandLine(t *testing.T) {
	t.Parallel()
	binary := filepath.Join(t.TempDir(), "tomato")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	dir := t.TempDir()
	const hidden = "hunter2" // whatever has it may be shown nowhere
	all := []string{"TOMATO_JWT_SECRET=" + contractSecretWord, "TOMATO_CLUSTER_KEY=" + strings.Repeat("c", 32), "TOMATO_INTERNAL_KEY=" + strings.Repeat("k", 32), "TOMATO_RAZORPAY_WEBHOOK_SECRETS=w"}
	short := strings.Repeat("s", 24) + hidden // 31 bytes
	long := hidden + strings.Repeat("l", 32)
	allHidden := "TOMATO_JWT_SECRET=" + long + " TOMATO_CLUSTER_KEY=" + long + "c TOMATO_INTERNAL_KEY=" + long + "i TOMATO_RAZORPAY_WEBHOOK_SECRETS=" + hidden +
		" KAFKA_SASL_PASSWORD=" + hidden + " TOMATO_RAZORPAY_KEY_SECRET=" + hidden + " DATABASE_URL=postgres://u:" + hidden + "@127.0.0.1:1/x?connect_timeout=2"
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
		{"", "serve --event-epoch 2", 2, "", "TOMATO_EVENT_EPOCH must be 0 to 1"},
		{"TOMATO_OFFER_RADII=9000,5000", "serve", 2, "", "TOMATO_OFFER_RADII"},
		{"TOMATO_OFFER_LIMIT=0", "serve", 2, "", "TOMATO_OFFER_LIMIT"},
		{"TOMATO_DB_QUERY_CONNS=1", "serve", 2, "", "TOMATO_DB_QUERY_CONNS is 1, but must be 2 to 1000"},
		{"", "serve --db-projection-conns 1", 2, "", "TOMATO_DB_PROJECTION_CONNS is 1"},
		{"TOMATO_DB_POLICY_CONNS=1001", "serve", 2, "", "TOMATO_DB_POLICY_CONNS is 1001"},
		{"TOMATO_LOG_LEVEL=loud", "serve", 2, "", "log-level"},
		{"TOMATO_RAZORPAY_KEY_ID=k", "serve", 2, "", "TOMATO_RAZORPAY_KEY_SECRET"},
		{"KAFKA_BROKERS=127.0.0.1:1", "serve", 2, "", "TOMATO_JWT_SECRET"},
		{"DATABASE_URL=postgres://127.0.0.1:1/x", "serve", 2, "", "TOMATO_INTERNAL_KEY"},
		{"KAFKA_BROKERS=127.0.0.1:1 " + strings.Join(all[:3], " "), "serve", 2, "", "TOMATO_RAZORPAY_WEBHOOK_SECRETS"},
		{"KAFKA_BROKERS=127.0.0.1:1 " + all[0] + " " + strings.Join(all[2:], " "), "serve", 2, "", "TOMATO_CLUSTER_KEY"},
		{"TOMATO_JWT_SECRET=" + short, "serve", 2, "", "TOMATO_JWT_SECRET has 31 bytes: at least 32 are needed. Make one with `openssl rand -hex 32`"},
		{"TOMATO_CLUSTER_KEY=" + short, "serve", 2, "", "TOMATO_CLUSTER_KEY has 31 bytes: at least 32 are needed"},
		{"TOMATO_INTERNAL_KEY=" + short, "serve", 2, "", "TOMATO_INTERNAL_KEY has 31 bytes: at least 32 are needed"},
		{"TOMATO_JWT_SECRET=" + short + " KAFKA_BROKERS=127.0.0.1:1 " + strings.Join(all[1:], " "), "serve --dev", 2, "", "TOMATO_JWT_SECRET has 31 bytes"},
		{"TOMATO_JWT_SECRET=" + short, "token --role ops --sub a", 2, "", "TOMATO_JWT_SECRET has 31 bytes: at least 32 are needed. Make one with"},
		{"TOMATO_JWT_SECRET=" + short, "simulate --orders 1", 2, "", "TOMATO_JWT_SECRET has 31 bytes"},
		{"TOMATO_CLUSTER_KEY=" + long + " TOMATO_INTERNAL_KEY=" + long, "serve", 2, "", "must differ"},
		{"TOMATO_RAZORPAY_WEBHOOK_SECRETS=,", "serve", 2, "", "is empty, and anybody"},
		{"TOMATO_RAZORPAY_WEBHOOK_SECRETS=" + hidden + ",,b", "serve", 2, "", "secret 2 of 3 is empty"},
		{allHidden, "serve --help", 0, "Usage: tomato serve", ""},
		{allHidden, "serve --nonsense", 2, "", "nonsense"},
		{allHidden, "migrate", 1, "", "127.0.0.1"},
		{"DATABASE_URL=postgres://u:" + hidden + "/" + hidden + "@127.0.0.1:1/x", "migrate", 2, "", "DATABASE_URL cannot be read"},
		{"DATABASE_URL=postgres://u:1%zz" + hidden + "@127.0.0.1:1/x", "migrate", 2, "", "DATABASE_URL cannot be read"},
		{"DATABASE_URL=postgress://u:" + hidden + "@127.0.0.1:1/x", "dlq list", 2, "", "DATABASE_URL cannot be read"},
		{"DATABASE_URL=password=" + hidden + "'", "rebuild orders", 2, "", "DATABASE_URL cannot be read"},
		{"DATABASE_URL=postgres://u:" + hidden + "@127.0.0.1:port/x", "serve", 2, "", "DATABASE_URL cannot be read"},
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
		{"", "rebuild orders --cancel --resume", 2, "", "--cancel goes with no other flag"},
		{"", "rebuild orders --dry-run --drop-old", 2, "", "--dry-run does not switch"},
		{"", "rebuild orders --throttle=-1", 2, "", "--throttle must be 0 or more"},
		{"", "dlq list", 2, "", "tomato serve"},
		{"", "projections list", 2, "", "tomato serve"},
		{"", "projections verify nonsense", 2, "", "nonsense"},
		{"", "projections verify orders --log --generation 2", 2, "", "does not go with --log"},
		{"", "projections switch orders", 2, "", "generation"},
		{"", "projections drop orders x", 2, "", "x"},
		{"", "projections rebuild-one orders", 2, "", "name the read model and the id"},
		{"", "projections skip orders orders/3@1207", 2, "", "--reason"},
		{"", "projections skip orders orders/3 --reason r", 2, "", "expected TOPIC/PARTITION@OFFSET"},
		{"", "projections skip orders orders/-3@1 --reason r", 2, "", "expected TOPIC/PARTITION@OFFSET"},
		{"", "projections trim-history orders --before May", 2, "", "expected YYYY-MM"},
		{"", "projections unskip orders orders@3/1", 2, "", "expected TOPIC/PARTITION@OFFSET"},
		{"", "dlq show x", 2, "", "x"},
		{"", "erase", 2, "", "exactly one of --customer, --rider and --webhooks"},
		{"", "erase --customer a --rider b", 2, "", "exactly one of"},
		{"", "erase --customer a/b", 2, "", "an id is 1 to 64"},
		{"", "erase --webhooks 2026-13", 2, "", "a month looks like 2026-11"},
		{"", "erase --customer a", 2, "", "tomato serve"},
		{"", "keys rewrap", 2, "", "no master key: set TOMATO_MASTER_KEY"},
		{"TOMATO_MASTER_KEY=" + hidden, "keys rewrap", 2, "", "TOMATO_MASTER_KEY: key 1 of 1 cannot be used"},
		{"TOMATO_MASTER_KEY=" + hidden, "serve", 2, "", "TOMATO_MASTER_KEY: key 1 of 1 cannot be used"},
		{all[1], "keys rewrap", 2, "", "tomato serve"},
		{all[1], "keys open --subject shop/x --field name", 2, "", "a subject is customer/<id>"},
		{"", "topics describe", 2, "", "tomato serve"},
		{"", "migrate", 2, "", "tomato serve"},
		{"", "bench nonsense", 2, "", "nonsense"},
		{"", "bench project --existing 10000001", 2, "", "--existing must be 0 to 10,000,000"},
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
			if strings.Contains(stdout.String()+stderr.String(), hidden) {
				t.Errorf("a secret is shown: %s%s", stdout.Bytes(), stderr.Bytes())
			}
			if token, is := strings.CutPrefix(r.args, "token "); is && r.code == 0 {
				claims := jwt.MapClaims{}
				_, err := jwt.ParseWithClaims(strings.TrimSuffix(stdout.String(), "\n"), claims, func(*jwt.Token) (any, error) { return []byte(contractSecretWord), nil },
					jwt.WithIssuer("i"), jwt.WithAudience("d"), jwt.WithExpirationRequired())
				if err != nil || claims["role"] != "restaurant" || claims["restaurantId"] != "r1" || claims["sub"] != "a" {
					t.Errorf("token %s: %v %v", token, err, claims)
				}
			}
		})
	}
}
