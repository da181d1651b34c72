package parked

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"tomato/eventlog"
	"tomato/eventlog/pgerr"
)

const maxErrorText = 1000 // bytes that are kept of an error's text

// Panic returns the error of a handler that panicked with value. It is poison.
func Panic(value any) error { return panicError{value} }

type panicError struct{ value any }

func (p panicError) Error() string      { return fmt.Sprintf("handler panic: %v", p.value) }
func (p panicError) ErrorClass() string { return "panic" }
func (p panicError) Unwrap() error      { return eventlog.ErrPoison }

// Undecodable returns the error of a record whose attributes cannot be read,
// because of err. It is poison.
func Undecodable(err error) error { return decodeError{err} }

type decodeError struct{ err error }

func (d decodeError) Error() string      { return d.err.Error() }
func (d decodeError) ErrorClass() string { return "decode" }
func (d decodeError) Unwrap() error      { return eventlog.ErrPoison }

// ErrGone says that neither the source topic nor a retry or dead letter topic has
// the record any more. It is poison.
var ErrGone error = goneError{}

type goneError struct{}

func (goneError) Error() string {
	return "the record has expired from its topic, and its copies from the retry topics"
}
func (goneError) ErrorClass() string { return "gone" }
func (goneError) Unwrap() error      { return eventlog.ErrPoison }

// errorClass returns the word by which operators select failures. An error can
// name its own with a method ErrorClass() string.
func errorClass(err error) string {
	var own interface{ ErrorClass() string }
	switch {
	case errors.As(err, &own):
		return own.ErrorClass()
	case pgerr.Code(err) != "":
		return "pg_" + pgerr.Code(err)
	case errors.Is(err, eventlog.ErrPoison):
		return "poison"
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	}
	return "transient"
}

func errorText(err error) string {
	s := plainText(err.Error())
	if len(s) > maxErrorText {
		s = s[:maxErrorText]
		for !utf8.ValidString(s) {
			s = s[:len(s)-1]
		}
	}
	return s
}

// plainText makes s fit for a text column, which takes neither NUL nor invalid UTF-8.
func plainText(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "")
}
