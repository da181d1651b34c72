package settings

import (
	"errors"
	"time"
)

// Duration is a time.Duration that must be positive.
type Duration time.Duration

// UnmarshalText reads a duration such as 90s, 15m or 720h.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err == nil && v <= 0 {
		err = errors.New("must be more than 0")
	}
	*d = Duration(v)
	return err
}
