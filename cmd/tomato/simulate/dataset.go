package simulate

import (
	"bufio"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"tomato/domain"
)

// maxLineBytes bounds one line of a dataset. A longer line is rejected.
const maxLineBytes = 64 << 10

// indiaTime is the zone of the dataset's local times.
var indiaTime = time.FixedZone("IST", 5*3600+1800)

// Delivery is one accepted row of a dataset.
type Delivery struct {
	Line       int    // in the file; the header is line 1
	ID         string // the row's own id
	RiderID    string // Delivery_person_ID
	Restaurant string // ID of a Site
	Item       string // Type_of_order
	OrderedAt  time.Time
	DeliverTo  domain.Point
}

// Site is a restaurant of a dataset: one code at one position. A code that occurs at
// several positions makes several sites. Their ids are numbered from the second one
// on.
type Site struct {
	ID       string
	Location domain.Point
	Items    []string // kinds of food that were ordered there, sorted
}

// Courier is a rider of a dataset. Home is the position of the first site that they
// deliver for.
type Courier struct {
	ID      string
	Vehicle string // "" if the file has none
	Home    domain.Point
}

// Reject is a row that cannot be used, and why.
type Reject struct {
	Line   int    `json:"line"`
	Reason string `json:"reason"` // one of the names below
	Detail string `json:"detail,omitempty"`
}

// Dataset is what a file of deliveries holds. Every row after the header is
// either a delivery or a reject: Rows = len(Deliveries) + len(Rejects).
// Deliveries are ordered by OrderedAt; those with the same time are in the order of
// the file.
type Dataset struct {
	Rows       int
	Deliveries []Delivery
	Rejects    []Reject
	Sites      []Site
	Couriers   []Courier
}

// The reasons for which a row is rejected.
const (
	reasonMalformed     = "malformed_row"
	reasonBadID         = "malformed_id"
	reasonDuplicate     = "duplicate_id"
	reasonNoTime        = "missing_order_time"
	reasonBadTime       = "impossible_time"
	reasonBadDate       = "impossible_date"
	reasonNoPosition    = "missing_coordinates"
	reasonBadPosition   = "malformed_coordinates"
	reasonZeroPosition  = "zero_coordinates"
	reasonNegated       = "negated_coordinates"
	reasonOutOfRange    = "coordinates_out_of_range"
	reasonNoTypeOfOrder = "missing_type_of_order"
)

// columns are the columns that are read. The file may have more, in any order.
var columns = []string{
	"ID", "Delivery_person_ID", "Restaurant_latitude", "Restaurant_longitude",
	"Delivery_location_latitude", "Delivery_location_longitude",
	"Order_Date", "Time_Orderd", "Time_Order_picked", "Type_of_order", "Type_of_vehicle",
}

var personID = regexp.MustCompile(`^([A-Z]{2,10}RES[0-9]{1,4})DEL[0-9]{1,4}$`)

// LoadDataset reads a CSV file of deliveries. It fails if the file cannot be read or
// its header lacks a column. A row that cannot be used is not an error: it becomes a
// Reject.
func LoadDataset(path string) (*Dataset, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("dataset: %w", err)
	}
	defer f.Close()
	return ReadDataset(f)
}

// ReadDataset reads the file's content from r. Each line is parsed by itself, so
// that a stray quote affects its own row only.
func ReadDataset(r io.Reader) (*Dataset, error) {
	br := bufio.NewReaderSize(r, maxLineBytes)
	header, _, err := readLine(br)
	if err != nil {
		return nil, fmt.Errorf("dataset: the header cannot be read: %w", err)
	}
	names, err := fields(strings.TrimPrefix(header, "\ufeff"))
	if err != nil {
		return nil, fmt.Errorf("dataset: header: %w", err)
	}
	at := map[string]int{}
	for i, n := range names {
		at[n] = i
	}
	for _, c := range columns {
		if _, ok := at[c]; !ok {
			return nil, fmt.Errorf("dataset: the header has no column %q", c)
		}
	}

	d := &Dataset{}
	b := builder{d: d, ids: map[string]bool{}, sites: map[siteKey]int{}, codes: map[string]int{}, couriers: map[string]int{}}
	for line := 2; ; line++ {
		text, long, err := readLine(br)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("dataset: line %d: %w", line, err)
		}
		d.Rows++
		if rej := b.row(line, text, long, names, at); rej != nil {
			rej.Line = line
			d.Rejects = append(d.Rejects, *rej)
		}
	}
	for i := range d.Sites {
		slices.Sort(d.Sites[i].Items)
	}
	slices.SortStableFunc(d.Deliveries, func(a, b Delivery) int { return a.OrderedAt.Compare(b.OrderedAt) })
	return d, nil
}

// Reasons counts the rejects by reason.
func (d *Dataset) Reasons() map[string]int {
	n := map[string]int{}
	for _, r := range d.Rejects {
		n[r.Reason]++
	}
	return n
}

// siteKey identifies a Site.
type siteKey struct {
	code string
	at   domain.Point
}

// builder makes a Dataset row by row.
type builder struct {
	d        *Dataset
	ids      map[string]bool
	sites    map[siteKey]int
	codes    map[string]int // sites per restaurant code
	couriers map[string]int
}

// row adds one row to the dataset. If the row cannot be used, it returns a Reject,
// and the caller sets the Reject's line.
func (b *builder) row(line int, text string, long bool, names []string, at map[string]int) *Reject {
	if long {
		return &Reject{Reason: reasonMalformed, Detail: fmt.Sprintf("longer than %d bytes", maxLineBytes)}
	}
	v, err := fields(text)
	if err != nil {
		return &Reject{Reason: reasonMalformed, Detail: err.Error()}
	}
	if len(v) != len(names) {
		return &Reject{Reason: reasonMalformed, Detail: fmt.Sprintf("%d columns, the header has %d", len(v), len(names))}
	}
	get := func(col string) string { return v[at[col]] }

	id := get("ID")
	if missing(id) {
		return &Reject{Reason: reasonBadID, Detail: "no ID"}
	}
	person := get("Delivery_person_ID")
	m := personID.FindStringSubmatch(person)
	if m == nil {
		return &Reject{Reason: reasonBadID, Detail: fmt.Sprintf("Delivery_person_ID %q", clip(person))}
	}
	if b.ids[id] {
		return &Reject{Reason: reasonDuplicate, Detail: clip(id)}
	}
	from, rej := position(get("Restaurant_latitude"), get("Restaurant_longitude"), "restaurant")
	if rej != nil {
		return rej
	}
	to, rej := position(get("Delivery_location_latitude"), get("Delivery_location_longitude"), "delivery location")
	if rej != nil {
		return rej
	}
	date, err := time.ParseInLocation("02-01-2006", get("Order_Date"), indiaTime)
	if err != nil {
		return &Reject{Reason: reasonBadDate, Detail: fmt.Sprintf("Order_Date %q", clip(get("Order_Date")))}
	}
	if missing(get("Time_Orderd")) {
		return &Reject{Reason: reasonNoTime}
	}
	clock, err := time.Parse("15:04:05", get("Time_Orderd"))
	if err != nil {
		return &Reject{Reason: reasonBadTime, Detail: fmt.Sprintf("Time_Orderd %q", clip(get("Time_Orderd")))}
	}
	// The simulation does not use the pick-up time, so it may be missing. A pick-up
	// time that does not exist, such as 24:05, shows that the row cannot be trusted.
	if p := get("Time_Order_picked"); !missing(p) {
		if _, err := time.Parse("15:04:05", p); err != nil {
			return &Reject{Reason: reasonBadTime, Detail: fmt.Sprintf("Time_Order_picked %q", clip(p))}
		}
	}
	item := get("Type_of_order")
	if missing(item) || !domain.ValidID(item) {
		return &Reject{Reason: reasonNoTypeOfOrder, Detail: clip(item)}
	}

	b.ids[id] = true
	site := b.site(m[1], from, item)
	if _, ok := b.couriers[person]; !ok {
		b.couriers[person] = len(b.d.Couriers)
		c := Courier{ID: person, Home: from}
		if vehicle := get("Type_of_vehicle"); !missing(vehicle) {
			c.Vehicle = vehicle
		}
		b.d.Couriers = append(b.d.Couriers, c)
	}
	b.d.Deliveries = append(b.d.Deliveries, Delivery{
		Line: line, ID: id, RiderID: person, Restaurant: site, Item: item, DeliverTo: to,
		OrderedAt: date.Add(time.Duration(clock.Hour())*time.Hour +
			time.Duration(clock.Minute())*time.Minute + time.Duration(clock.Second())*time.Second),
	})
	return nil
}

// site returns the id of the site with this code and position, and adds the item to
// it. If there is no such site yet, it adds one.
func (b *builder) site(code string, at domain.Point, item string) string {
	k := siteKey{code, at}
	i, ok := b.sites[k]
	if !ok {
		i = len(b.d.Sites)
		b.sites[k] = i
		b.codes[code]++
		id := code
		if n := b.codes[code]; n > 1 {
			id = fmt.Sprintf("%s-%d", code, n)
		}
		b.d.Sites = append(b.d.Sites, Site{ID: id, Location: at})
	}
	s := &b.d.Sites[i]
	if !slices.Contains(s.Items, item) {
		s.Items = append(s.Items, item)
	}
	return s.ID
}

// position parses a position. It rejects a position that cannot be in India. It does
// not correct the sign of a negated coordinate, because that would be a guess.
func position(latText, lngText, what string) (domain.Point, *Reject) {
	if missing(latText) || missing(lngText) {
		return domain.Point{}, &Reject{Reason: reasonNoPosition, Detail: what}
	}
	lat, err1 := strconv.ParseFloat(latText, 64)
	lng, err2 := strconv.ParseFloat(lngText, 64)
	if err1 != nil || err2 != nil {
		return domain.Point{}, &Reject{Reason: reasonBadPosition, Detail: fmt.Sprintf("%s %q, %q", what, clip(latText), clip(lngText))}
	}
	p := domain.Point{Lng: lng, Lat: lat}
	detail := fmt.Sprintf("%s %v, %v", what, lat, lng)
	switch {
	case !p.Valid():
		return p, &Reject{Reason: reasonOutOfRange, Detail: detail}
	case lat == 0 && lng == 0:
		return p, &Reject{Reason: reasonZeroPosition, Detail: detail}
	case lat < 0 || lng < 0:
		return p, &Reject{Reason: reasonNegated, Detail: detail}
	}
	return p, nil
}

// missing reports whether a value is missing: empty, or the text NaN.
func missing(s string) bool { return s == "" || strings.EqualFold(s, "nan") }

// clip shortens a text for a message.
func clip(s string) string {
	if len(s) > 40 {
		return s[:40] + "…"
	}
	return s
}

// fields splits one line and trims the spaces of each value.
func fields(line string) ([]string, error) {
	if strings.TrimSpace(line) == "" {
		return nil, errors.New("empty row")
	}
	r := csv.NewReader(strings.NewReader(line))
	r.FieldsPerRecord = -1
	v, err := r.Read()
	if err != nil {
		var pe *csv.ParseError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		return nil, err
	}
	for i := range v {
		v[i] = strings.TrimSpace(v[i])
	}
	return v, nil
}

// readLine returns the next line without its line end. It skips a line that is
// longer than maxLineBytes, and returns long and no text for it.
func readLine(r *bufio.Reader) (line string, long bool, err error) {
	b, err := r.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		for errors.Is(err, bufio.ErrBufferFull) {
			_, err = r.ReadSlice('\n')
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return "", true, err
		}
		return "", true, nil
	case err != nil && len(b) == 0:
		return "", false, err
	case err != nil && !errors.Is(err, io.EOF):
		return "", false, err
	}
	return strings.TrimRight(string(b), "\r\n"), false, nil
}
