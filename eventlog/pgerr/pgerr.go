// Package pgerr answers what an error of a Postgres client means: whether
// Postgres was unavailable, whether a transaction met a conflict, and with which
// SQLSTATE Postgres answered. Every part of the program that has to tell these
// apart asks here, so all of them give the same answer.
package pgerr

import (
	"errors"
	"net"

	"github.com/jackc/pgx/v5/pgconn"

	"tomato/eventlog"
)

// Unavailable reports whether err says that something which the caller depends
// on did not answer: Postgres, the network, or whatever the error is marked for
// with eventlog.ErrUnavailable. It is better to wait and try again than to
// count the call as failed.
//
// An error that is marked with eventlog.ErrPoison is never a sign of
// unavailability. Neither is a bare io.EOF, because decoders return it for
// incomplete input, nor a bare context.DeadlineExceeded, because it may be the
// caller's own deadline.
func Unavailable(err error) bool {
	if errors.Is(err, eventlog.ErrPoison) {
		return false
	}
	if errors.Is(err, eventlog.ErrUnavailable) {
		return true
	}
	// A refused login is wrapped in a ConnectError too: without a connection
	// nothing can be said about the statement.
	var connect *pgconn.ConnectError
	if errors.As(err, &connect) {
		return true
	}
	if code := Code(err); code != "" {
		switch Class(err) {
		case "08", // connection exception
			"53", // insufficient resources
			"57", // operator intervention
			"58": // system error
			return true
		}
		// 25P03: Postgres ended a transaction that was idle, because this process
		// was stopped for a while.
		return code == "25P03"
	}
	var op *net.OpError
	return errors.As(err, &op) || pgconn.SafeToRetry(err) || pgconn.Timeout(err)
}

// Conflict reports whether a transaction failed because of another one (a
// serialization failure, a deadlock, a lock that was not available), so that the
// same transaction may succeed when it is repeated.
func Conflict(err error) bool { return Class(err) == "40" || Code(err) == "55P03" }

// Code returns the SQLSTATE that Postgres answered with, such as "42P01". It
// returns "" if err has no answer of Postgres in it.
func Code(err error) string {
	var answer *pgconn.PgError
	if errors.As(err, &answer) {
		return answer.Code
	}
	return ""
}

// Class returns the first two characters of Code, which are the class of the
// error, or "".
func Class(err error) string {
	code := Code(err)
	return code[:min(2, len(code))]
}

// FromPostgres reports whether err came from Postgres, as an answer or because
// it could not be connected to. It does not know every error of a broken
// connection.
func FromPostgres(err error) bool {
	var connect *pgconn.ConnectError
	return Code(err) != "" || errors.As(err, &connect)
}
