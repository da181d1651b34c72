// Package settings has what several commands of the command line share. These are
// groups of flags, which a command embeds; the development secrets and the file
// running.json, both in the data directory; and the error of a wrong call.
//
// The files, in reading order:
//
//	flags.go     groups of flags: data directory, Kafka, database
//	pools.go     the pools of connections to the database
//	secrets.go   the flags of secrets, and development secrets
//	files.go     secrets that are read from files
//	hide.go      secrets among the arguments, which ps would show
//	master.go    the master keys
//	address.go   the addresses at which an instance listens and is reached
//	running.go   what a running serve tells the tools beside it
//	usage.go     the error of a wrong call
//	duration.go  a flag that is a positive duration
//	build.go     the version of the binary
package settings

import (
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

// Dir says where this installation keeps its files, and what it logs.
type Dir struct {
	DataDir  string `env:"TOMATO_DATA_DIR" default:".tomato" help:"Where the embedded broker, the private database and development secrets live."`
	LogLevel string `env:"TOMATO_LOG_LEVEL" default:"info" enum:"debug,info,warn,error" help:"What is logged to stderr."`
}

// Logger returns a logger that writes to stderr.
func (f Dir) Logger() *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(f.LogLevel)) // cannot fail, because the flag's enum allows only valid levels
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
}

// BrokerDir returns the folder in which the embedded broker keeps its log.
func (f Dir) BrokerDir() string { return filepath.Join(f.DataDir, "broker") }

// Kafka says how to reach the brokers.
type Kafka struct {
	Brokers       []string `name:"kafka-brokers" env:"KAFKA_BROKERS" placeholder:"HOST:PORT,…" help:"Kafka. Unset: an embedded broker under the data directory."`
	TLS           bool     `name:"kafka-tls" env:"KAFKA_TLS" help:"Talk TLS to the brokers."`
	SASLMechanism string   `name:"kafka-sasl-mechanism" env:"KAFKA_SASL_MECHANISM" help:"PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512."`
	SASLUsername  string   `name:"kafka-sasl-username" env:"KAFKA_SASL_USERNAME" help:"For SASL."`
	SASLPassword  string   `name:"kafka-sasl-password" env:"KAFKA_SASL_PASSWORD" secret:"" help:"For SASL."`
	Partitions    int32    `name:"partitions" env:"TOMATO_PARTITIONS" default:"12" help:"Of every topic. Chosen once, when the topics are created."`
	Replication   int16    `name:"replication" env:"TOMATO_REPLICATION" default:"0" help:"Copies of every partition, when the topics are created. 0: three, or as many as there are brokers."`
}

// Config returns how to connect to the brokers. The brokers use clientID to name the
// client in logs and metrics.
func (f Kafka) Config(clientID string) eventlog.Config {
	return eventlog.Config{Brokers: f.Brokers, TLS: f.TLS, SASLMechanism: f.SASLMechanism,
		SASLUsername: f.SASLUsername, SASLPassword: f.SASLPassword, ClientID: clientID}
}

// Database says how to reach Postgres.
type Database struct {
	DatabaseURL string `name:"database-url" env:"DATABASE_URL" secret:"" placeholder:"postgres://…" help:"Postgres with PostGIS. Unset: a private cluster under the data directory."`
}

// Check returns a UsageError if the address cannot be read. The error does not quote
// the address, because the address contains a password, which cannot be recognized if
// the form of the address is wrong.
func (f Database) Check() error {
	if f.DatabaseURL == "" {
		return nil
	}
	scheme, _, _ := strings.Cut(f.DatabaseURL, "://")
	_, err := pgxpool.ParseConfig(f.DatabaseURL)
	_, uerr := url.Parse(f.DatabaseURL)
	if err != nil || uerr != nil || scheme != "postgres" && scheme != "postgresql" {
		return Usage("DATABASE_URL cannot be read, or a file that it names (sslrootcert, sslcert, sslkey): expected postgres://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=require, in which special characters of the password are written as %%XX")
	}
	return nil
}

// Tool has the flags of the tools that work beside a running serve. Such a tool finds
// the embedded broker and the private database in the file that serve wrote.
type Tool struct {
	Dir
	Kafka
	Database
}

// Resolve fills in the brokers and the database of the running serve if none are
// configured. It returns a UsageError if it needs a running serve and there is none.
func (f *Tool) Resolve() error {
	if err := f.Database.Check(); err != nil {
		return err
	}
	if len(f.Brokers) > 0 && f.DatabaseURL != "" {
		return nil
	}
	r, err := ReadRunning(f.DataDir)
	if errors.Is(err, fs.ErrNotExist) {
		return Usage("no serve is running with data directory %s: start `tomato serve` beside this command, or set KAFKA_BROKERS and DATABASE_URL", f.DataDir)
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

// ResolveDatabase is Resolve for a tool that needs the database. It returns a
// UsageError if the address of the database is not known.
func (f *Tool) ResolveDatabase() error {
	if err := f.Resolve(); err != nil {
		return err
	}
	if f.DatabaseURL == "" {
		return Usage("the serve with data directory %s has a configured database, whose address is not written down because it holds a password: set DATABASE_URL for this command, too", f.DataDir)
	}
	return nil
}
