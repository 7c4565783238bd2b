-- Problems that no run has lived to print, late usage among them.

-- What was late before is no news.
UPDATE meterctl.meter_events SET told = true WHERE late;

CREATE INDEX untold ON meterctl.meter_events (event_name)
    WHERE NOT told AND (state IN ('rejected', 'expired') OR late);
