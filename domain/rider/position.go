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

// Position is where a rider was at one time. It is the data of a RIDER_LOCATION record.
// Positions are telemetry: they belong to no aggregate and have no version.
type Position struct {
	RiderID    string       `json:"riderId"`
	Location   domain.Point `json:"location"`
	RecordedAt time.Time    `json:"recordedAt"`
}

// MaxAhead is how far the time of a position may be ahead of a reader's clock. The
// device's clock may be a minute ahead of the instance that accepted the position, and
// that instance's clock a minute ahead of the reader's. If a position with a later time
// were accepted, all real positions of the rider would look outdated.
const MaxAhead = 2 * time.Minute

// ReadPosition reads a record of topic rider-locations from its event type, its key and
// its data. It fails if the record is not a valid position.
func ReadPosition(eventType, key string, data []byte, now time.Time) (Position, error) {
	if eventType != PositionType {
		return Position{}, fmt.Errorf("the type is %q", eventType)
	}
	var p Position
	if !domain.ReadJSON(data, &p) {
		var other struct {
			RiderID    string        `json:"riderId"`
			Location   *domain.Point `json:"location"`
			RecordedAt time.Time     `json:"recordedAt"`
		}
		if err := json.Unmarshal(data, &other); err != nil {
			return Position{}, err
		}
		if other.Location == nil {
			return Position{}, errors.New("location is missing")
		}
		p = Position{other.RiderID, *other.Location, other.RecordedAt}
	}
	switch {
	case !domain.ValidID(p.RiderID) || p.RiderID != key:
		return Position{}, errors.New("riderId must be the id that is the record's key")
	case p.RecordedAt.IsZero():
		return Position{}, errors.New("recordedAt is missing")
	case p.RecordedAt.After(now.Add(MaxAhead)):
		return Position{}, fmt.Errorf("recordedAt %s lies in the future", p.RecordedAt.Format(time.RFC3339))
	}
	return p, nil
}
