package domain

import (
	"errors"
	"fmt"
)

// Refusal is the error of a command that the aggregate's state does not allow.
// Decide returns no other error, unless the caller has a bug.
type Refusal struct {
	Code          Code
	Detail        string
	CurrentStatus string // of the order, if the code is invalid_transition
}

func (r *Refusal) Error() string { return string(r.Code) + ": " + r.Detail }

// Refuse makes a refusal.
func Refuse(code Code, format string, args ...any) *Refusal {
	return &Refusal{Code: code, Detail: fmt.Sprintf(format, args...)}
}

// RefusedWith returns the code of the refusal in err, or "".
func RefusedWith(err error) Code {
	var r *Refusal
	if errors.As(err, &r) {
		return r.Code
	}
	return ""
}

// Code is a stable refusal code. Clients branch on it.
type Code string

// The refusal codes that every aggregate has. Those of one aggregate are in its
// package's errors.go. The HTTP status of each code is in httpapi/problem.go, and
// nowhere else.
const (
	NotFound          Code = "not_found" // no such aggregate, or hidden from this party: 404 <noun>_not_found
	Forbidden         Code = "forbidden"
	InvalidTransition Code = "invalid_transition"
)
