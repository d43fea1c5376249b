package benchpeer

// Median is median.
var Median = median

// Measure plays rounds and returns the median times, ours first, and our ratio
// to each peer.
func Measure(rounds, workers int, ours Call, peers ...Peer) (times, ratios []float64, err error) {
	m, err := newMatch(workers, ours, peers)
	if err != nil {
		return nil, nil, err
	}
	for range rounds {
		if err := m.play(); err != nil {
			return nil, nil, err
		}
	}
	for i := range m.players {
		if times = append(times, m.time(i)); i > 0 {
			ratios = append(ratios, m.ratio(i))
		}
	}
	return times, ratios, nil
}
