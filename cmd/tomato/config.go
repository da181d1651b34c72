package main

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"tomato/eventlog"
)

// dirFlags say where this installation keeps what it makes itself.
type dirFlags struct {
	DataDir  string `env:"TOMATO_DATA_DIR" default:".tomato" help:"Where the embedded broker, the private database and development secrets live."`
	LogLevel string `env:"TOMATO_LOG_LEVEL" default:"info" enum:"debug,info,warn,error" help:"What is logged to stderr."`
}

func (f dirFlags) logger() *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(f.LogLevel)) // the enum holds
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
}

// kafkaFlags say how to reach the brokers.
type kafkaFlags struct {
	Brokers       []string `name:"kafka-brokers" env:"KAFKA_BROKERS" placeholder:"HOST:PORT,…" help:"Kafka. Unset: an embedded broker under the data directory."`
	TLS           bool     `name:"kafka-tls" env:"KAFKA_TLS" help:"Talk TLS to the brokers."`
	SASLMechanism string   `name:"kafka-sasl-mechanism" env:"KAFKA_SASL_MECHANISM" help:"PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512."`
	SASLUsername  string   `name:"kafka-sasl-username" env:"KAFKA_SASL_USERNAME" help:"For SASL."`
	SASLPassword  string   `name:"kafka-sasl-password" env:"KAFKA_SASL_PASSWORD" help:"For SASL."`
	Partitions    int32    `name:"partitions" env:"TOMATO_PARTITIONS" default:"12" help:"Of every topic. Chosen once, when the topics are created."`
	Replication   int16    `name:"replication" env:"TOMATO_REPLICATION" default:"0" help:"Copies of every partition, when the topics are created. 0: three, or as many as there are brokers."`
}

func (f kafkaFlags) config(clientID string) eventlog.Config {
	return eventlog.Config{Brokers: f.Brokers, TLS: f.TLS, SASLMechanism: f.SASLMechanism,
		SASLUsername: f.SASLUsername, SASLPassword: f.SASLPassword, ClientID: clientID}
}

// databaseFlags say how to reach Postgres.
type databaseFlags struct {
	DatabaseURL string `name:"database-url" env:"DATABASE_URL" placeholder:"postgres://…" help:"Postgres with PostGIS. Unset: a private cluster under the data directory."`
}

// toolFlags are what the tools beside a running serve need: they find an
// embedded broker and a private database by what serve wrote.
type toolFlags struct {
	dirFlags
	kafkaFlags
	databaseFlags
}

// running is what a serve writes into its data directory for the tools beside it.
type running struct {
	PID         int      `json:"pid"`
	Brokers     []string `json:"brokers"`
	DatabaseURL string   `json:"databaseUrl"`
	URL         string   `json:"url"`
}

func runningFile(dir string) string { return filepath.Join(dir, "running.json") }

func (r running) write(dir string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(runningFile(dir), b)
}

// writeFile replaces a file that only its owner may read.
func writeFile(path string, b []byte) error {
	tmp := path + ".new"
	if err := os.WriteFile(tmp, append(b, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

func readRunning(dir string) (r running, err error) {
	b, err := os.ReadFile(runningFile(dir))
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(b, &r)
}

// resolve fills in what a running serve said, where nothing is configured.
func (f *toolFlags) resolve() error {
	if len(f.Brokers) > 0 && f.DatabaseURL != "" {
		return nil
	}
	r, err := readRunning(f.DataDir)
	if errors.Is(err, fs.ErrNotExist) {
		return usage("no serve is running with data directory %s: start `tomato serve` beside this command, or set KAFKA_BROKERS and DATABASE_URL", f.DataDir)
	}
	if err != nil {
		return err
	}
	if len(f.Brokers) == 0 {
		f.Brokers = r.Brokers
	}
	if f.DatabaseURL == "" {
		f.DatabaseURL = r.DatabaseURL
	}
	return nil
}

// secretFlags are the secrets that every instance shares.
type secretFlags struct {
	JWTSecret      string   `env:"TOMATO_JWT_SECRET" help:"HS256 secret of the tokens."`
	JWKSURL        string   `name:"jwks-url" env:"TOMATO_JWKS_URL" help:"Keys of RS256 or ES256 tokens, instead of a secret."`
	InternalKey    string   `env:"TOMATO_INTERNAL_KEY" help:"Of POST /api/v1/internal/emit."`
	WebhookSecrets []string `name:"razorpay-webhook-secrets" env:"TOMATO_RAZORPAY_WEBHOOK_SECRETS" help:"Newest first; older ones stay valid while the gateway retries."`
}

// secrets are development secrets as they are kept in the data directory.
type secrets struct {
	JWTSecret     string `json:"jwtSecret"`
	InternalKey   string `json:"internalKey"`
	WebhookSecret string `json:"webhookSecret"`
}

func secretsFile(dir string) string { return filepath.Join(dir, "secrets.json") }

func readSecrets(dir string) (s secrets, err error) {
	b, err := os.ReadFile(secretsFile(dir))
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(b, &s)
}

// develop fills missing secrets with development ones, made once and kept in
// dir. allowed is false where a broker or a database is configured: secrets
// that nobody chose do not belong there.
func (f *secretFlags) develop(dir string, allowed bool) (made bool, err error) {
	jwt := f.JWTSecret != "" || f.JWKSURL != ""
	if jwt && f.InternalKey != "" && len(f.WebhookSecrets) > 0 {
		return false, nil
	}
	if !allowed {
		var missing []string
		for name, there := range map[string]bool{"TOMATO_JWT_SECRET (or TOMATO_JWKS_URL)": jwt,
			"TOMATO_INTERNAL_KEY": f.InternalKey != "", "TOMATO_RAZORPAY_WEBHOOK_SECRETS": len(f.WebhookSecrets) > 0} {
			if !there {
				missing = append(missing, name)
			}
		}
		return false, usage("KAFKA_BROKERS or DATABASE_URL is set, so secrets are not made up: set %v, or pass --dev", missing)
	}
	s, err := readSecrets(dir)
	if errors.Is(err, fs.ErrNotExist) {
		s = secrets{JWTSecret: random(), InternalKey: random(), WebhookSecret: random()}
		b, merr := json.MarshalIndent(s, "", "  ")
		if merr != nil {
			return false, merr
		}
		err = writeFile(secretsFile(dir), b)
	}
	if err != nil {
		return false, fmt.Errorf("development secrets: %w", err)
	}
	if !jwt {
		f.JWTSecret = s.JWTSecret
	}
	if f.InternalKey == "" {
		f.InternalKey = s.InternalKey
	}
	if len(f.WebhookSecrets) == 0 {
		f.WebhookSecrets = []string{s.WebhookSecret}
	}
	return true, nil
}

func random() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	return hex.EncodeToString(b)
}
