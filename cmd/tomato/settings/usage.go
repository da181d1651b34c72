package settings

import "fmt"

// UsageError is an error in how a command was called or configured. After it the
// process ends with another exit code than after other errors.
type UsageError struct{ Err error }

func (e UsageError) Error() string { return e.Err.Error() }

// Unwrap returns the error without its kind.
func (e UsageError) Unwrap() error { return e.Err }

// Usage makes a UsageError as fmt.Errorf makes an error.
func Usage(format string, args ...any) error { return UsageError{fmt.Errorf(format, args...)} }
