package httpapi

import (
	"errors"
	"strings"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"

	"tomato/domain"
)

// Formats that the validation knows beyond huma's.
const (
	formatText  = "text"
	formatPoint = "geojson-point"
)

const (
	maxTextChars = 500
	textMessage  = "expected 1 to 500 characters beside white space at the ends, and no U+0000"
)

// ID is the id of a restaurant, rider, customer or menu item, chosen by the
// caller: domain.ValidID holds for one that was read from a request.
type ID string

// Schema describes an id.
func (ID) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Pattern: "^[A-Za-z0-9_-]{1,64}$"}
}

// Text is a text of 1 to 500 characters, trimmed. As the field of a body it is
// checked with its location; it checks itself as well, so that a Text that was
// read from JSON is always good.
type Text string

// UnmarshalText reads and trims.
func (t *Text) UnmarshalText(b []byte) error {
	if !validText(string(b)) {
		return fault{errors.New(textMessage)}
	}
	*t = Text(strings.TrimSpace(string(b)))
	return nil
}

// Schema describes a text. The pattern says, exactly, what 1 to 500 characters
// after trimming are.
func (Text) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Format: formatText,
		Extensions: map[string]any{"pattern": `^\s*[^\s\u0000]([^\u0000]{0,498}[^\s\u0000])?\s*$`}}
}

func validText(s string) bool {
	s = strings.TrimSpace(s)
	return s != "" && (len(s) <= maxTextChars || utf8.RuneCountInString(s) <= maxTextChars) && strings.IndexByte(s, 0) < 0
}

// Point is domain.Point for request structs; domain.Point itself does as well:
// the validation and the OpenAPI document treat them alike.
type Point struct{ domain.Point }

// Domain is the point.
func (p Point) Domain() domain.Point { return p.Point }

// Schema describes a GeoJSON Point.
func (Point) Schema(huma.Registry) *huma.Schema {
	two, three := 2, 3
	return &huma.Schema{
		Type:                 huma.TypeObject,
		Format:               formatPoint,
		Description:          "GeoJSON Point: longitude, latitude, and perhaps an altitude, which is dropped.",
		Required:             []string{"type", "coordinates"},
		AdditionalProperties: false,
		Properties: map[string]*huma.Schema{
			"type": {Type: huma.TypeString, Enum: []any{"Point"}},
			"coordinates": {Type: huma.TypeArray, MinItems: &two, MaxItems: &three, Items: &huma.Schema{Type: huma.TypeNumber},
				Extensions: map[string]any{"prefixItems": []any{
					map[string]any{"type": "number", "minimum": -180, "maximum": 180},
					map[string]any{"type": "number", "minimum": -90, "maximum": 90},
					map[string]any{"type": "number"},
				}}},
		},
	}
}

// OrderID is the id of an order: a UUID in its lower-case text form.
type OrderID string

// Schema describes an order id.
func (OrderID) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Pattern: "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"}
}

// validOrderID is the pattern above by hand: an order's id is in most paths.
func validOrderID(s string) bool {
	for i := range len(s) {
		c := s[i]
		if i == 8 || i == 13 || i == 18 || i == 23 {
			if c != '-' {
				return false
			}
		} else if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return len(s) == 36
}
