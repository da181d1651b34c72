package simulate

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const datasetHeader = "ID,Delivery_person_ID,Restaurant_latitude,Restaurant_longitude,Delivery_location_latitude,Delivery_location_longitude,Order_Date,Time_Orderd,Time_Order_picked,Type_of_order,Type_of_vehicle"

func load(t *testing.T, rows ...string) *Dataset {
	t.Helper()
	d, err := ReadDataset(strings.NewReader(datasetHeader + "\n" + strings.Join(rows, "\n") + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	if d.Rows != len(rows) || d.Rows != len(d.Deliveries)+len(d.Rejects) {
		t.Fatalf("%d rows given, %d counted = %d deliveries + %d rejects", len(rows), d.Rows, len(d.Deliveries), len(d.Rejects))
	}
	return d
}

func TestEachDirtyRowIsRejectedWithItsLineAndReason(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ row, reason string }{
		"order time missing":       {"a,BANGRES1DEL1,12.9,77.6,12.8,77.5,01-03-2022,NaN ,10:00:00,Meal,scooter", reasonNoTime},
		"order time empty":         {"a,BANGRES1DEL1,12.9,77.6,12.8,77.5,01-03-2022,,10:00:00,Meal,scooter", reasonNoTime},
		"no such time":             {"a,BANGRES1DEL1,12.9,77.6,12.8,77.5,01-03-2022,24:05:00,10:00:00,Meal,scooter", reasonBadTime},
		"no such pick-up time":     {"a,BANGRES1DEL1,12.9,77.6,12.8,77.5,01-03-2022,23:55:00,24:05:00,Meal,scooter", reasonBadTime},
		"no such date":             {"a,BANGRES1DEL1,12.9,77.6,12.8,77.5,30-02-2022,10:00:00,10:05:00,Meal,scooter", reasonBadDate},
		"restaurant at zero":       {"a,BANGRES1DEL1,0.0,0.0,12.8,77.5,01-03-2022,10:00:00,10:05:00,Meal,scooter", reasonZeroPosition},
		"delivery at zero":         {"a,BANGRES1DEL1,12.9,77.6,0,-0.0,01-03-2022,10:00:00,10:05:00,Meal,scooter", reasonZeroPosition},
		"negated latitude":         {"a,BANGRES1DEL1,-12.9,77.6,12.8,77.5,01-03-2022,10:00:00,10:05:00,Meal,scooter", reasonNegated},
		"negated longitude":        {"a,BANGRES1DEL1,12.9,-77.6,12.8,77.5,01-03-2022,10:00:00,10:05:00,Meal,scooter", reasonNegated},
		"latitude 91":              {"a,BANGRES1DEL1,91,77.6,12.8,77.5,01-03-2022,10:00:00,10:05:00,Meal,scooter", reasonOutOfRange},
		"infinite":                 {"a,BANGRES1DEL1,12.9,Inf,12.8,77.5,01-03-2022,10:00:00,10:05:00,Meal,scooter", reasonOutOfRange},
		"coordinates missing":      {"a,BANGRES1DEL1,NaN ,77.6,12.8,77.5,01-03-2022,10:00:00,10:05:00,Meal,scooter", reasonNoPosition},
		"coordinates not a number": {"a,BANGRES1DEL1,12.9N,77.6,12.8,77.5,01-03-2022,10:00:00,10:05:00,Meal,scooter", reasonBadPosition},
		"column too few":           {"a,BANGRES1DEL1,12.9,77.6,12.8,77.5,01-03-2022,10:00:00,10:05:00,Meal", reasonMalformed},
		"column too many":          {"a,BANGRES1DEL1,12.9,77.6,12.8,77.5,01-03-2022,10:00:00,10:05:00,Meal,scooter,x", reasonMalformed},
		"stray quote":              {`a,"BANGRES1DEL1,12.9,77.6,12.8,77.5,01-03-2022,10:00:00,10:05:00,Meal,scooter`, reasonMalformed},
		"empty row":                {"   ", reasonMalformed},
		"very long":                {strings.Repeat("x", 3*maxLineBytes), reasonMalformed},
		"rider id":                 {"a,BANG15,12.9,77.6,12.8,77.5,01-03-2022,10:00:00,10:05:00,Meal,scooter", reasonBadID},
		"no id":                    {"NaN,BANGRES1DEL1,12.9,77.6,12.8,77.5,01-03-2022,10:00:00,10:05:00,Meal,scooter", reasonBadID},
		"type of order missing":    {"a,BANGRES1DEL1,12.9,77.6,12.8,77.5,01-03-2022,10:00:00,10:05:00,NaN ,scooter", reasonNoTypeOfOrder},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			good := "g,BANGRES2DEL1,12.9,77.6,12.8,77.5,01-03-2022,10:00:00,NaN ,Meal ,NaN "
			d := load(t, good, tc.row, strings.Replace(good, "g,", "h,", 1))
			if len(d.Rejects) != 1 || d.Rejects[0].Line != 3 || d.Rejects[0].Reason != tc.reason {
				t.Errorf("rejects %+v, want one of line 3 for %s", d.Rejects, tc.reason)
			}
			if len(d.Deliveries) != 2 {
				t.Errorf("%d deliveries, want the two good rows around it", len(d.Deliveries))
			}
			if d.Couriers[0].Vehicle != "" {
				t.Errorf("a vehicle %q was made up", d.Couriers[0].Vehicle)
			}
		})
	}
}

func TestARowIsTakenOnce(t *testing.T) {
	t.Parallel()
	row := "a,BANGRES1DEL1,12.9,77.6,12.8,77.5,01-03-2022,10:00:00,10:05:00,Meal,scooter"
	d := load(t, row, row)
	if diff := cmp.Diff([]Reject{{Line: 3, Reason: reasonDuplicate, Detail: "a"}}, d.Rejects); diff != "" {
		t.Error(diff)
	}
}

func TestOneCodeAtTwoPlacesIsTwoSites(t *testing.T) {
	t.Parallel()
	d := load(t,
		"a,BANGRES1DEL1,12.9,77.6,12.8,77.5,02-03-2022,10:00:00,10:05:00,Meal,scooter",
		"b,BANGRES1DEL2,12.9,77.6,12.8,77.5,01-03-2022,11:00:00,11:05:00,Drinks,motorcycle",
		"c,BANGRES1DEL1,13.9,77.6,13.8,77.5,01-03-2022,10:59:59,11:05:00,Meal,scooter",
	)
	var ids, order []string
	for _, s := range d.Sites {
		ids = append(ids, s.ID+" "+strings.Join(s.Items, "+"))
	}
	for _, x := range d.Deliveries {
		order = append(order, x.ID+" "+x.Restaurant+" "+x.OrderedAt.UTC().Format("02T15:04:05"))
	}
	if diff := cmp.Diff([]string{"BANGRES1 Drinks+Meal", "BANGRES1-2 Meal"}, ids); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"c BANGRES1-2 01T05:29:59", "b BANGRES1 01T05:30:00", "a BANGRES1 02T04:30:00"}, order); diff != "" {
		t.Error(diff)
	}
	if len(d.Couriers) != 2 || d.Couriers[0].Home != d.Sites[0].Location {
		t.Errorf("couriers %+v", d.Couriers)
	}
}

func TestAFileWithoutTheColumnsIsAnError(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "ID,Order_Date\n1,2\n"} {
		if _, err := ReadDataset(strings.NewReader(text)); err == nil {
			t.Errorf("%q: no error", text)
		}
	}
}

// datasetPath returns the path of the real file. If there is none, it skips the test
// with a message.
func datasetPath(t *testing.T) string {
	t.Helper()
	path := os.Getenv("TOMATO_DATASET")
	if path == "" {
		path = filepath.Join("..", "..", "..", "..", "shared", "data", "deliveries-india-2022.csv")
	}
	if _, err := os.Stat(path); err != nil {
		t.Skipf("no dataset: %v (TOMATO_DATASET names another place)", err)
	}
	return path
}

func TestEveryRowOfTheRealFileIsAccountedFor(t *testing.T) {
	t.Parallel()
	d, err := LoadDataset(datasetPath(t))
	if err != nil {
		t.Fatal(err)
	}
	if d.Rows != 11399 || d.Rows != len(d.Deliveries)+len(d.Rejects) {
		t.Errorf("%d rows, %d deliveries, %d rejects", d.Rows, len(d.Deliveries), len(d.Rejects))
	}
	r := d.Reasons()
	if r[reasonZeroPosition] != 870 || r[reasonNegated] != 114 {
		t.Errorf("reasons %v, want 870 at zero and 114 negated", r)
	}
	sites := map[string]bool{}
	for _, s := range d.Sites {
		sites[s.ID] = true
	}
	for i, x := range d.Deliveries {
		if !sites[x.Restaurant] || !x.DeliverTo.Valid() {
			t.Fatalf("delivery %+v", x)
		}
		if i > 0 && x.OrderedAt.Before(d.Deliveries[i-1].OrderedAt) {
			t.Fatalf("line %d before its time", x.Line)
		}
	}
	t.Logf("%d rows, %d deliveries, %d sites, %d couriers, rejects %v", d.Rows, len(d.Deliveries), len(d.Sites), len(d.Couriers), r)
}
