package rider

import (
	"strings"
	"testing"
	"time"
)

func TestReadPosition(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	at := func(d time.Duration) string { return now.Add(d).Format(time.RFC3339Nano) }
	good := `{"riderId":"r1","location":{"type":"Point","coordinates":[77.6,12.9]},"recordedAt":"` + at(0) + `"}`
	for name, c := range map[string]struct {
		eventType, key, data string
		ok                   bool
	}{
		"a position":             {PositionType, "r1", good, true},
		"a device that is ahead": {PositionType, "r1", strings.ReplaceAll(good, at(0), at(time.Minute)), true},
		"an old one":             {PositionType, "r1", strings.ReplaceAll(good, at(0), "1970-01-01T00:00:00Z"), true},
		"far in the future":      {PositionType, "r1", strings.ReplaceAll(good, at(0), at(time.Hour)), false},
		"the end of time":        {PositionType, "r1", strings.ReplaceAll(good, at(0), "9999-12-31T23:59:59Z"), false},
		"no time":                {PositionType, "r1", `{"riderId":"r1","location":{"type":"Point","coordinates":[77.6,12.9]}}`, false},
		"no place":               {PositionType, "r1", `{"riderId":"r1","recordedAt":"` + at(0) + `"}`, false},
		"null for a place":       {PositionType, "r1", `{"riderId":"r1","location":null,"recordedAt":"` + at(0) + `"}`, false},
		"out of range":           {PositionType, "r1", strings.ReplaceAll(good, "77.6", "181"), false},
		"beyond every number":    {PositionType, "r1", strings.ReplaceAll(good, "77.6", "1e999"), false},
		"NaN":                    {PositionType, "r1", strings.ReplaceAll(good, "77.6", "NaN"), false},
		"another rider's":        {PositionType, "r2", good, false},
		"no rider":               {PositionType, "", strings.ReplaceAll(good, `"r1"`, `""`), false},
		"no id":                  {PositionType, "r 1", strings.ReplaceAll(good, `"r1"`, `"r 1"`), false},
		"a foreign event":        {"ORDER_READY_FOR_RIDER", "r1", good, false},
		"a tombstone":            {"", "r1", "", false},
		"no JSON":                {PositionType, "r1", "\x00\xff", false},
		"not an object":          {PositionType, "r1", `["r1"]`, false},
	} {
		p, err := ReadPosition(c.eventType, c.key, []byte(c.data), now)
		if (err == nil) != c.ok {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
}
