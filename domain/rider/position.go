package rider

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"tomato/domain"
)

// PositionType is the type of the records on topic rider-locations.
const PositionType = "RIDER_LOCATION"

// Position is a rider's position: the data of a RIDER_LOCATION record. It is
// telemetry: no aggregate, no version.
type Position struct {
	RiderID    string       `json:"riderId"`
	Location   domain.Point `json:"location"`
	RecordedAt time.Time    `json:"recordedAt"`
}

// MaxAhead is how far ahead of a reader's clock a position may be recorded: a
// minute that the device may be ahead of who took it in, and a minute that they
// may be ahead of the reader. A later one would make every real position of its
// rider look outdated.
const MaxAhead = 2 * time.Minute

// ReadPosition reads a record of topic rider-locations: its event type, its key
// and its data. It fails on whatever is no position that a reader can use.
func ReadPosition(eventType, key string, data []byte, now time.Time) (Position, error) {
	var p struct {
		RiderID    string        `json:"riderId"`
		Location   *domain.Point `json:"location"`
		RecordedAt time.Time     `json:"recordedAt"`
	}
	if eventType != PositionType {
		return Position{}, fmt.Errorf("the type is %q", eventType)
	}
	if err := json.Unmarshal(data, &p); err != nil {
		return Position{}, err
	}
	switch {
	case !domain.ValidID(p.RiderID) || p.RiderID != key:
		return Position{}, errors.New("riderId must be the id that is the record's key")
	case p.Location == nil:
		return Position{}, errors.New("location is missing")
	case p.RecordedAt.IsZero():
		return Position{}, errors.New("recordedAt is missing")
	case p.RecordedAt.After(now.Add(MaxAhead)):
		return Position{}, fmt.Errorf("recordedAt %s lies in the future", p.RecordedAt.Format(time.RFC3339))
	}
	return Position{p.RiderID, *p.Location, p.RecordedAt}, nil
}
