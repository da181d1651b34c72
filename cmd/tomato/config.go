package main

import (
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"

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

// check refuses an address that cannot be read. The error does not quote it: it
// holds a password, which cannot be told from the rest where the form is wrong.
func (f databaseFlags) check() error {
	if f.DatabaseURL == "" {
		return nil
	}
	scheme, _, _ := strings.Cut(f.DatabaseURL, "://")
	_, err := pgxpool.ParseConfig(f.DatabaseURL)
	_, uerr := url.Parse(f.DatabaseURL)
	if err != nil || uerr != nil || scheme != "postgres" && scheme != "postgresql" {
		return usage("DATABASE_URL cannot be read, or a file that it names (sslrootcert, sslcert, sslkey): expected postgres://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=require, in which special characters of the password are written as %%XX")
	}
	return nil
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
	DatabaseURL string   `json:"databaseUrl,omitempty"` // of the private database alone: a configured one has a password
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

func readRunning(dir string) (r running, err error) {
	b, err := os.ReadFile(runningFile(dir))
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(b, &r)
}

// resolve fills in what a running serve said, where nothing is configured.
func (f *toolFlags) resolve() error {
	if err := f.databaseFlags.check(); err != nil {
		return err
	}
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

// resolveDatabase is resolve for a tool that cannot do without the database.
func (f *toolFlags) resolveDatabase() error {
	if err := f.resolve(); err != nil {
		return err
	}
	if f.DatabaseURL == "" {
		return usage("the serve with data directory %s has a configured database, whose address is not written down because it holds a password: set DATABASE_URL for this command, too", f.DataDir)
	}
	return nil
}
