package domain

import (
	"encoding/json"
	"errors"
	"math"
	"strconv"
)

// Point is a position on the earth: degrees, WGS 84. Its JSON form is a
// GeoJSON Point, longitude first (RFC 7946); an altitude is dropped on reading.
type Point struct {
	Lng float64 // degrees, -180 to 180
	Lat float64 // degrees, -90 to 90
}

type geoJSONPoint struct {
	Type        string    `json:"type"`
	Coordinates []float64 `json:"coordinates"`
}

// MarshalJSON writes the point as GeoJSON, without reflection: most events have a
// point.
func (p Point) MarshalJSON() ([]byte, error) { return p.append(make([]byte, 0, 80)), nil }

func (p Point) append(b []byte) []byte {
	b = append(b, `{"type":"Point","coordinates":[`...)
	b = strconv.AppendFloat(b, p.Lng, 'g', -1, 64)
	b = append(b, ',')
	b = strconv.AppendFloat(b, p.Lat, 'g', -1, 64)
	return append(b, "]}"...)
}

// UnmarshalJSON reads a GeoJSON Point. Anything else is an error.
func (p *Point) UnmarshalJSON(b []byte) error {
	var g geoJSONPoint
	if err := json.Unmarshal(b, &g); err != nil {
		return err
	}
	if g.Type != "Point" || len(g.Coordinates) < 2 || len(g.Coordinates) > 3 {
		return errors.New(`a position is {"type":"Point","coordinates":[lng,lat]}`)
	}
	p.Lng, p.Lat = g.Coordinates[0], g.Coordinates[1]
	if !p.Valid() {
		return errors.New("longitude is -180 to 180, latitude -90 to 90, longitude first")
	}
	return nil
}

// Valid reports whether both coordinates are in range.
func (p Point) Valid() bool {
	return p.Lng >= -180 && p.Lng <= 180 && p.Lat >= -90 && p.Lat <= 90 &&
		!math.IsNaN(p.Lng) && !math.IsNaN(p.Lat)
}
