package projections

import (
	"fmt"
	"strings"
	"testing"
)

// A cache keeps what was used last, and no more than its bound.
func TestTheCacheHasABound(t *testing.T) {
	t.Parallel()
	var c cache[int]
	text := strings.Repeat("x", 1<<20)
	put := func(n int) {
		id := fmt.Sprint(n)
		c.put(map[string]*folded[int]{id: {id: id, state: n, version: 3, row: 3, xmin: 7, text: text}})
	}
	const many = 100
	for n := range many {
		put(n)
		if f := c.get("0", false); f == nil || f.state != 0 || f.version != 3 || f.row != 3 || f.xmin != 7 || !f.cached {
			t.Fatalf("after %d: what is used all the time is %+v", n, f)
		}
	}
	held := 0
	for n := range many {
		if c.young[fmt.Sprint(n)].version > 0 || c.old[fmt.Sprint(n)].version > 0 {
			held++
		}
	}
	if limit := cacheBytes/len(text) + 2; held > limit || held < limit/2-1 {
		t.Errorf("it holds %d states of 1 MiB, want up to %d", held, limit)
	}
	if f := c.get(fmt.Sprint(many-1), false); f == nil {
		t.Error("the newest has gone")
	}
	if f := c.get("1", true); f == nil || f.row != 0 {
		t.Errorf("one that is not known and begins is %+v", f)
	}
	c.mistrust([]string{"0", "1"})
	if c.get("0", false) != nil || c.get("1", true) != nil {
		t.Error("a row that must be read is known")
	}
	put(0)
	if c.get("0", false) == nil {
		t.Error("a row that was written again is not known")
	}
	var none *cache[int]
	if none.get("0", true) != nil {
		t.Error("no cache knows a row")
	}
}
