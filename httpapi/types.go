package httpapi

import (
	"errors"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"

	"tomato/domain"
	"tomato/domain/order"
)

// The formats that validation knows beside those of huma.
const (
	formatText  = "text"
	formatLine  = "line"
	formatPoint = "geojson-point"
)

const (
	maxTextChars = 500
	textMessage  = "expected 1 to 500 characters beside white space at the ends, one of them visible"
	textControls = "expected UTF-8 without control characters but line feed and tab"
	lineControls = "expected UTF-8 without control characters"
)

// ID is the id of a restaurant, rider, customer or menu item, which the caller chooses.
// domain.ValidID is true of an ID that was read from a request.
type ID string

// Schema describes an id.
func (ID) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Pattern: "^[A-Za-z0-9_-]{1,64}$"}
}

// Text is a text of 1 to 500 characters, without white space at the ends. Validation
// checks it in a body and reports the location of a fault. UnmarshalText checks it
// again, so a Text that was read from JSON is always valid.
type Text string

// UnmarshalText reads and trims.
func (t *Text) UnmarshalText(b []byte) error {
	s, err := readText(formatText, string(b))
	*t = Text(s)
	return err
}

// Schema describes a text.
func (Text) Schema(huma.Registry) *huma.Schema { return textSchema(formatText) }

// Line is a Text of one line, such as a name.
type Line string

// UnmarshalText reads and trims.
func (l *Line) UnmarshalText(b []byte) error {
	s, err := readText(formatLine, string(b))
	*l = Line(s)
	return err
}

// Schema describes a line.
func (Line) Schema(huma.Registry) *huma.Schema { return textSchema(formatLine) }

func readText(format, s string) (string, error) {
	if message := textFault(format, s); message != "" {
		return "", fault{errors.New(message)}
	}
	return strings.TrimSpace(s), nil
}

// textSchema returns a schema whose pattern has all rules for a text except one: at least
// one character must be visible.
func textSchema(format string) *huma.Schema {
	control := `\u0000-\u001f\u007f-\u009f`
	if format == formatText {
		control = `\u0000-\u0008\u000b-\u001f\u007f-\u009f`
	}
	return &huma.Schema{Type: huma.TypeString, Format: format,
		Description: "Trimmed; at least one character is visible: a letter, digit, sign or symbol.",
		Extensions:  map[string]any{"pattern": `^\s*[^\s` + control + `]([^` + control + `]{0,498}[^\s` + control + `])?\s*$`}}
}

// textFault returns what is wrong with a text of the format, or "" if it is valid.
func textFault(format, s string) string {
	s = strings.TrimSpace(s)
	seen := false
	for _, r := range s {
		if unicode.IsControl(r) && (format == formatLine || r != '\n' && r != '\t') || r == utf8.RuneError && !utf8.ValidString(s) {
			if format == formatLine {
				return lineControls
			}
			return textControls
		}
		seen = seen || visible(r)
	}
	if !seen || len(s) > maxTextChars && utf8.RuneCountInString(s) > maxTextChars {
		return textMessage
	}
	return ""
}

// visible reports whether a character is visible by itself. Spaces, marks, format
// characters and fillers are not.
func visible(r rune) bool {
	if r < utf8.RuneSelf {
		return r > ' ' && r < 0x7f
	}
	return unicode.In(r, unicode.L, unicode.N, unicode.P, unicode.S) && !unicode.Is(unicode.Other_Default_Ignorable_Code_Point, r) && r != '\u2800' // the empty Braille pattern
}

// Point is domain.Point for input structs. domain.Point may be used as well: validation
// and the OpenAPI document treat both alike.
type Point struct{ domain.Point }

// Domain returns p as a domain.Point.
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

// deliverTo describes order.DeliverTo.
type deliverTo struct{ order.DeliverTo }

// Schema describes where an order goes, in an answer.
func (deliverTo) Schema(r huma.Registry) *huma.Schema {
	text := &huma.Schema{Type: huma.TypeString}
	return &huma.Schema{
		Type:                 huma.TypeObject,
		Description:          "Location, address, and perhaps instructions. If the customer was erased, it is {\"erased\":true} and nothing else.",
		AdditionalProperties: false,
		Properties: map[string]*huma.Schema{"location": Point{}.Schema(r), "address": text, "instructions": text,
			"erased": {Type: huma.TypeBoolean, Enum: []any{true}}},
	}
}

// OrderID is the id of an order: a UUID in its lower-case text form.
type OrderID string

// Schema describes an order id.
func (OrderID) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Pattern: "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"}
}

// validOrderID reports whether s matches the pattern of OrderID. It does not use the
// regular expression, because most paths have the id of an order.
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
