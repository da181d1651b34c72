package realtime

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"tomato/domain"
	"tomato/eventlog/subjectkeys"
)

// lackLogEvery is the pause between two log entries about missing master keys.
const lackLogEvery = 10 * time.Second

// shownKeys opens what is personal in messages. A field whose key is wrapped under a
// master key that this instance lacks is shown as erased: the instance gets the master key
// only with a restart, and waiting for that would hold up everybody else's messages. All
// other failures are those of keys.
type shownKeys struct {
	keys subjectkeys.Opener
	log  *slog.Logger
	m    *metrics
}

// Open implements subjectkeys.Opener.
func (s shownKeys) Open(ctx context.Context, subject subjectkeys.Subject, field string, sealed domain.Sealed) ([]byte, error) {
	plain, err := s.keys.Open(ctx, subject, field, sealed)
	var missing *subjectkeys.MissingMasterError
	if !errors.As(err, &missing) {
		return plain, err
	}
	if n, now := s.m.lacks(); now {
		s.log.Error("the feed shows personal fields as erased although nobody was erased, because this instance lacks a master key", "count", n, "err", missing)
	}
	return nil, subjectkeys.ErrErased
}
