package pgerr_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"tomato/eventlog"
	"tomato/eventlog/pgerr"
)

// refusedConnection is what pgx returns when nobody listens on the port.
func refusedConnection(t *testing.T) error {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err = pgconn.Connect(ctx, "postgres://u:p@"+addr+"/d?sslmode=disable")
	if err == nil {
		t.Fatal("a connection to a closed port")
	}
	return err
}

func TestErrors(t *testing.T) {
	t.Parallel()
	answer := func(code string) error {
		return fmt.Errorf("query: %w", &pgconn.PgError{Code: code})
	}
	for _, c := range []struct {
		name                   string
		err                    error
		unavailable, conflicts bool
		fromPostgres           bool
		code                   string
	}{
		{name: "no error"},
		{name: "another error", err: errors.New("no")},
		{name: "no rows", err: pgx.ErrNoRows},
		{name: "input that ends early", err: io.EOF},
		{name: "the caller's deadline", err: context.DeadlineExceeded},
		{name: "marked as unavailable", err: eventlog.Unavailable(errors.New("no")), unavailable: true},
		{name: "marked with a dependency", err: fmt.Errorf("handler: %w", eventlog.UnavailableFrom("gateway", errors.New("503"))), unavailable: true},
		{name: "poison", err: eventlog.Poison(errors.New("no"))},
		{name: "poison because of what is unavailable", err: eventlog.Poison(eventlog.Unavailable(errors.New("no")))},
		{name: "an answer that is marked as unavailable", err: eventlog.Unavailable(answer("42P01")), unavailable: true, fromPostgres: true, code: "42P01"},
		{name: "the port is closed", err: refusedConnection(t), unavailable: true, fromPostgres: true},
		{name: "the connection broke", err: fmt.Errorf("read: %w", &net.OpError{Op: "read", Err: errors.New("reset")}), unavailable: true},
		{name: "connection failure", err: answer("08006"), unavailable: true, fromPostgres: true, code: "08006"},
		{name: "the disk is full", err: answer("53100"), unavailable: true, fromPostgres: true, code: "53100"},
		{name: "too many connections", err: answer("53300"), unavailable: true, fromPostgres: true, code: "53300"},
		{name: "Postgres stops", err: answer("57P01"), unavailable: true, fromPostgres: true, code: "57P01"},
		{name: "Postgres starts", err: answer("57P03"), unavailable: true, fromPostgres: true, code: "57P03"},
		{name: "a file cannot be read", err: answer("58030"), unavailable: true, fromPostgres: true, code: "58030"},
		{name: "idle in a transaction", err: answer("25P03"), unavailable: true, fromPostgres: true, code: "25P03"},
		{name: "in a failed transaction", err: answer("25P02"), fromPostgres: true, code: "25P02"},
		{name: "serialization failure", err: answer("40001"), conflicts: true, fromPostgres: true, code: "40001"},
		{name: "deadlock", err: answer("40P01"), conflicts: true, fromPostgres: true, code: "40P01"},
		{name: "lock not available", err: answer("55P03"), conflicts: true, fromPostgres: true, code: "55P03"},
		{name: "object in use", err: answer("55006"), fromPostgres: true, code: "55006"},
		{name: "no such table", err: answer("42P01"), fromPostgres: true, code: "42P01"},
		{name: "a duplicate", err: answer("23505"), fromPostgres: true, code: "23505"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if got := pgerr.Unavailable(c.err); got != c.unavailable {
				t.Errorf("Unavailable is %v for %v", got, c.err)
			}
			if got := pgerr.Conflict(c.err); got != c.conflicts {
				t.Errorf("Conflict is %v for %v", got, c.err)
			}
			if got := pgerr.FromPostgres(c.err); got != c.fromPostgres {
				t.Errorf("FromPostgres is %v for %v", got, c.err)
			}
			if got := pgerr.Code(c.err); got != c.code {
				t.Errorf("Code is %q for %v", got, c.err)
			}
			if got, want := pgerr.Class(c.err), c.code[:min(2, len(c.code))]; got != want {
				t.Errorf("Class is %q for %v", got, c.err)
			}
		})
	}
}
