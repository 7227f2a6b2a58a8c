//! `vfu dma`
