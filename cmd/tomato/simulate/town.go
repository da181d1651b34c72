package simulate

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"

	"tomato/domain"
)

// maxCustomers bounds the number of customers, because each of them has a feed.
const maxCustomers = 500

// bengaluru is the middle of the invented town.
var bengaluru = domain.Point{Lng: 77.5946, Lat: 12.9716}

// town holds the parties of a run and the orders that are to be placed. It does not
// change during the run.
type town struct {
	operatorToken string
	restaurants   []*restaurant
	riders        []*rider
	customers     []*customer
	purchases     []purchase
	dataset       *Dataset // nil for an invented town

	restaurantOf map[*party]*restaurant
	riderOf      map[string]*rider // by id
}

// purchase is one order to be placed.
type purchase struct {
	restaurant *restaurant
	item       string
	to         domain.Point
}

// newTown makes the parties and the orders of a run. It sends nothing.
func newTown(o Options, c *caller) (*town, error) {
	b := &townBuilder{
		town: &town{restaurantOf: map[*party]*restaurant{}, riderOf: map[string]*rider{}},
		opt:  o, caller: c, rng: rand.New(rand.NewPCG(uint64(o.Seed), 0)),
	}
	var err error
	if b.town.operatorToken, err = c.api.token(domain.Ops, c.operatorID(), ""); err != nil {
		return nil, err
	}
	if o.Dataset != "" {
		err = b.fromDataset()
	} else {
		err = b.invent()
	}
	if err != nil {
		return nil, err
	}
	if err := b.addIneligibleRiders(); err != nil {
		return nil, err
	}
	return b.town, b.addCustomers()
}

// townBuilder makes a town. Equal seeds must give equal towns, so the calls that
// draw from rng must keep their order.
type townBuilder struct {
	town   *town
	opt    Options
	caller *caller
	rng    *rand.Rand
}

// invent makes a town around bengaluru.
func (b *townBuilder) invent() error {
	for i := range max(5, b.opt.Orders/5) {
		id := fmt.Sprintf("sim-k%d-%s", i, b.caller.run)
		if _, err := b.addRestaurant(id, "Kitchen "+strconv.Itoa(i), scatter(b.rng, bengaluru, 3000), []string{"meal", "snack", "drinks"}); err != nil {
			return err
		}
	}
	for i := range b.opt.Riders {
		if _, err := b.addRider(fmt.Sprintf("sim-r%d-%s", i, b.caller.run), "Rider "+strconv.Itoa(i), "motorcycle", scatter(b.rng, bengaluru, 1500)); err != nil {
			return err
		}
	}
	for range b.opt.Orders {
		k := b.town.restaurants[b.rng.IntN(len(b.town.restaurants))]
		b.town.purchases = append(b.town.purchases, purchase{k, k.items[b.rng.IntN(len(k.items))], scatter(b.rng, k.location, 4000)})
	}
	return nil
}

// fromDataset takes restaurants, riders and addresses from the file. The file
// has no prices, so fromDataset invents them.
func (b *townBuilder) fromDataset() error {
	d, err := LoadDataset(b.opt.Dataset)
	if err != nil {
		return err
	}
	if len(d.Deliveries) == 0 {
		return fmt.Errorf("dataset %s: none of its %d rows can be used", b.opt.Dataset, d.Rows)
	}
	b.town.dataset = d
	bySite := map[string]*restaurant{}
	for _, site := range d.Sites {
		if bySite[site.ID], err = b.addRestaurant(site.ID+"-"+b.caller.run, site.ID, site.Location, site.Items); err != nil {
			return err
		}
	}
	for _, c := range d.Couriers {
		if _, err := b.addRider(c.ID+"-"+b.caller.run, c.ID, c.Vehicle, scatter(b.rng, c.Home, 500)); err != nil {
			return err
		}
	}
	deliveries := d.Deliveries
	if b.opt.Orders > 0 && b.opt.Orders < len(deliveries) {
		deliveries = deliveries[:b.opt.Orders]
	}
	for _, x := range deliveries {
		b.town.purchases = append(b.town.purchases, purchase{bySite[x.Restaurant], x.Item, x.DeliverTo})
	}
	return nil
}

func (b *townBuilder) addRestaurant(id, name string, at domain.Point, items []string) (*restaurant, error) {
	k := &restaurant{party: b.caller.ledger.addParty(domain.Restaurant, id), name: name, location: at, items: items, price: map[string]int64{}}
	for _, item := range items {
		k.price[item] = 100 * (50 + b.rng.Int64N(450)) // 50 to 499 rupees, in paise
	}
	var err error
	k.token, err = b.caller.api.token(domain.Restaurant, id, id)
	b.town.restaurants = append(b.town.restaurants, k)
	b.town.restaurantOf[k.party] = k
	return k, err
}

func (b *townBuilder) addRider(id, name, vehicle string, home domain.Point) (*rider, error) {
	n := uint64(len(b.town.riders))
	d := &rider{
		party: b.caller.ledger.addParty(domain.Rider, id), name: name, vehicle: vehicle, home: home,
		offers: map[string]offer{}, wake: make(chan struct{}, 1), acceptsTwo: n%10 == 9,
		rng: rand.New(rand.NewPCG(uint64(b.opt.Seed), 1<<32+n)),
	}
	var err error
	d.token, err = b.caller.api.token(domain.Rider, id, "")
	b.town.riders = append(b.town.riders, d)
	b.town.riderOf[id] = d
	return d, err
}

// addIneligibleRiders adds riders near the restaurants to whom Tomato must not
// make an offer.
func (b *townBuilder) addIneligibleRiders() error {
	for i, why := range []string{riderUnverified, riderOffline, riderSuspended, riderStale} {
		near := b.town.restaurants[i%len(b.town.restaurants)].location
		d, err := b.addRider("sim-"+why+"-"+b.caller.run, "Rider who is "+why, "", scatter(b.rng, near, 300))
		if err != nil {
			return err
		}
		d.ineligible = why
	}
	return nil
}

func (b *townBuilder) addCustomers() error {
	for i := range min(len(b.town.purchases), maxCustomers) {
		id := fmt.Sprintf("sim-c%d-%s", i, b.caller.run)
		c := &customer{party: b.caller.ledger.addParty(domain.Customer, id)}
		var err error
		if c.token, err = b.caller.api.token(domain.Customer, id, ""); err != nil {
			return err
		}
		b.town.customers = append(b.town.customers, c)
	}
	return nil
}

// scatter returns a random point within the given distance of p, rounded to
// centimetres.
func scatter(rng *rand.Rand, p domain.Point, meters float64) domain.Point {
	const metersPerDegree = 111_320
	r, a := meters*math.Sqrt(rng.Float64()), 2*math.Pi*rng.Float64()
	round := func(x float64) float64 { return math.Round(x*1e7) / 1e7 }
	return domain.Point{
		Lat: round(p.Lat + r*math.Sin(a)/metersPerDegree),
		Lng: round(p.Lng + r*math.Cos(a)/(metersPerDegree*math.Cos(p.Lat*math.Pi/180))),
	}
}
