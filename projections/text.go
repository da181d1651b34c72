package projections

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"tomato/domain"
)

// This file writes values as text, for the arguments of statements and for COPY.

// marshal returns a state, of which v is the address, as JSON; without reflection if it
// is a domain.JSONWriter. A state is a struct of plain values, which always can be
// written. If one could not, the row must not be written either, so marshal panics.
func marshal(v any) string {
	if w, ok := v.(domain.JSONWriter); ok {
		return string(domain.EncodeJSON(w))
	}
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("a state cannot be written as JSON: %v", err))
	}
	return string(b)
}

func boolText(b bool) string { return strconv.FormatBool(b) }

func timeText(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// actorText returns who made an event, <role>:<sub>, or "" if it was nobody or if the text
// has another form: other programs may have written anything.
func actorText(actor string) string {
	role, sub, ok := strings.Cut(actor, ":")
	if !ok || !domain.ValidID(role) || !domain.ValidID(sub) {
		return ""
	}
	return actor
}

// pointText returns a point as WKT.
func pointText(p domain.Point) string {
	b := make([]byte, 0, 48)
	b = append(b, "POINT("...)
	b = strconv.AppendFloat(b, p.Lng, 'g', -1, 64)
	b = append(b, ' ')
	b = strconv.AppendFloat(b, p.Lat, 'g', -1, 64)
	return string(append(b, ')'))
}

// arrayText returns ids as an array of Postgres.
func arrayText(ids []string) string {
	if len(ids) == 0 {
		return "{}"
	}
	quoted := make([]string, len(ids))
	for i, id := range ids {
		quoted[i] = arrayQuotes.Replace(id)
	}
	return `{"` + strings.Join(quoted, `","`) + `"}`
}

var arrayQuotes = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

// copyLine appends a row to b in the text format of COPY.
func copyLine(b *bytes.Buffer, cells ...string) {
	for i, c := range cells {
		if i > 0 {
			b.WriteByte('\t')
		}
		if strings.IndexByte(c, '\\') < 0 && strings.IndexByte(c, '\n') < 0 && strings.IndexByte(c, '\t') < 0 && strings.IndexByte(c, '\r') < 0 {
			b.WriteString(c)
			continue
		}
		for j := range len(c) {
			switch c[j] {
			case '\\':
				b.WriteString(`\\`)
			case '\n':
				b.WriteString(`\n`)
			case '\t':
				b.WriteString(`\t`)
			case '\r':
				b.WriteString(`\r`)
			default:
				b.WriteByte(c[j])
			}
		}
	}
	b.WriteByte('\n')
}
